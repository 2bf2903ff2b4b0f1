"""Whole runs without a card: set-up, warm-up, recording, steps, averaging, refresh, evaluation."""

import fused_runs
import pytest
import runs
from checks import MOST_FOR_SWAG, MOST_TO_AVERAGE, complaints_about_run
from results import ask, marks
from subject import RECIPES

pytestmark = marks

ASKED_OTHERWISE = ("fault", "host time", "layouts", "evaluation", "executor")
WATCHED = [name for name in runs.CASES if not name.startswith(ASKED_OTHERWISE)]
PLAIN = {"plain muon", "plain sgd", "plain fp16 muon", "plain fp16 sgd", "averaging every step, plain"}
"""They were told not to record."""
FUSED = [name for name in fused_runs.CASES if not name.startswith(("fault", "host time"))]


@pytest.mark.parametrize("name", WATCHED)
def test_a_run_is_recorded_and_never_waits(name: str) -> None:
    run = ask("runs", name)
    most = MOST_FOR_SWAG if name.startswith("SWAG") else MOST_TO_AVERAGE
    assert complaints_about_run(run, most_to_average=most) == []
    assert run["recorded"] == (name not in PLAIN)


def test_every_recipe_is_among_them() -> None:
    assert {f"recipe {name}" for name in RECIPES} <= set(WATCHED)


@pytest.mark.parametrize("name", FUSED)
def test_a_run_with_fused_kernels_is_recorded_and_never_waits(name: str) -> None:
    run = ask("fused_runs", name)
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert complaints_about_run(run) == []
    assert run["recorded"] == (name != "plain")
    assert {"statistics", "normalize"} <= set(run["kernels"])
    assert run["fused_update"] == (name not in ("plain", "fp16"))
    wanted = {"muon": {"prepare", "gram", "steps", "apply", "sgd"}, "sgd": {"sgd"}, "fp16": set()}.get(name, set())
    assert wanted <= set(run["kernels"])


def test_large_filters_are_updated_beside_the_backward_pass_and_in_order() -> None:
    run = ask("fused_runs", "muon")
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert run["beside_backward"] == 4  # one of two groups, in the rehearsal and the recording of two image sizes
    assert run["missing_waits"] == 0


def test_both_image_sizes_are_trained() -> None:
    run = ask("runs", "recipe speedrun94")
    assert [block["size"] for block in run["blocks"]] == [22, 32, 32, 32]


@pytest.mark.parametrize("name", ["averaging every step", "averaging every step, plain", "SWAG every step"])
def test_the_tail_is_averaged_without_a_wait(name: str) -> None:
    run = ask("runs", name)
    assert run["swa_recorded"] == 6 == sum(step["averaged"] for block in run["blocks"] for step in block["steps"])
    (refresh,) = run["refresh"]
    assert len(refresh["steps"]) == 3 and all("waits" not in step["counted"] for step in refresh["steps"])


def test_the_executor_waits_for_the_images() -> None:
    assert ask("runs", "executor waits")
