"""Whole runs without a card: set-up, warm-up, recording, steps, averaging, refresh, evaluation."""

import fused_runs
import pytest
import runs
from checks import MOST_FOR_SWAG, MOST_TO_AVERAGE, complaints_about_run
from results import ask, marks
from subject import RECIPES

pytestmark = marks

ASKED_OTHERWISE = ("fault", "host time", "layouts", "evaluation", "executor", "preparation")
WATCHED = [name for name in runs.CASES if not name.startswith(ASKED_OTHERWISE)]
PLAIN = {"plain muon", "plain sgd", "plain fp16 muon", "plain fp16 sgd", "averaging every step, plain",
         "first stage cooled, plain"}  # fmt: skip
"""They were told not to record."""
FUSED = [name for name in fused_runs.CASES if not name.startswith(("fault", "host time", "evaluation"))]


@pytest.mark.parametrize("name", WATCHED)
def test_a_run_is_recorded_and_never_waits(name: str) -> None:
    run = ask("runs", name)
    assert complaints_about_run(run, most_to_average=most_to_average(name)) == []
    assert run["recorded"] == (name not in PLAIN)


def test_every_recipe_is_among_them() -> None:
    assert {f"recipe {name}" for name in RECIPES} <= set(WATCHED)


@pytest.mark.parametrize("name", FUSED)
def test_a_run_with_fused_kernels_is_recorded_and_never_waits(name: str) -> None:
    run = ask("fused_runs", name)
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert complaints_about_run(run, most_to_average=most_to_average(name)) == []
    assert run["recorded"] == (not name.endswith("plain"))
    assert {"statistics", "gradient_sums", "input_gradient", "activation_gradient"} <= {
        *run["kernels"]
    } or name == "head alone"
    assert {"normalize"} <= {*run["kernels"]}
    assert run["conv_kernels"] == chosen(name)
    assert set(run["conv_ms"]) == set(run["conv_kernels"])
    for where, times in run["conv_ms"].items():
        assert set(times) == {"none", "forward", "backward", "forward and backward"}
        assert run["conv_kernels"][where] == min(times, key=times.__getitem__)
    assert run["fused_update"] == (not name.endswith("plain") and name != "fp16")
    wanted = {"muon": {"prepare", "gram", "steps", "apply", "sgd"}, "sgd": {"sgd"}, "fp16": set()}.get(name, set())
    assert wanted <= set(run["kernels"])


def most_to_average(name: str) -> int:
    """Launches of the average after a step."""
    return MOST_FOR_SWAG if name == "SWAG every step" else MOST_TO_AVERAGE


def chosen(name: str) -> dict[str, str]:
    """What is chosen for each convolution before a pool and each size."""
    choice = "forward and backward" if "convolutions" in name else "none"
    return {f"stages.{i}.conv1 {s}x{s}": choice for i, both in enumerate(((24, 32), (12, 16), (6, 8))) for s in both}


def test_kernels_for_convolutions_take_the_place_of_cudnns() -> None:
    """In each plain step: three convolutions, and their gradients of weights and inputs."""
    with_them, without = (ask("fused_runs", f"{kind}plain") for kind in ("convolutions, ", ""))
    if not with_them["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {with_them['said']}")
    calls = [run["blocks"][-1]["steps"][-1]["counted"]["library_calls"] for run in (with_them, without)]
    assert calls[0] == calls[1] - 9
    own = ("conv_pool_stats", "input_gradient_of_pooled", "weight_gradient_of_pooled", "add_parts")
    assert set(own) <= set(with_them["kernels"])


@pytest.mark.parametrize("name", ["stem fixed", "stem fixed and cutout"])
def test_a_fixed_stem_reads_the_images_as_they_lie(name: str) -> None:
    """At 32 pixels a block is a table of draws: two launches and a copy, and the step has one kernel for the stem."""
    run = ask("fused_runs", name)
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert [(block["size"], block["drawn"]) for block in run["blocks"]] == [(24, False), *[(32, True)] * 3]
    assert run["kernels"]["stem"] == 3  # the check before the run, the rehearsal and the recording
    for block in run["blocks"][:-1]:
        assert block["ahead"]["counted"]["copies_to_device"] == 1
        assert block["ahead"]["counted"]["launches"] <= 2


def test_large_filters_are_updated_beside_the_backward_pass_and_in_order() -> None:
    run = ask("fused_runs", "muon")
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert run["beside_backward"] == 4  # one of two groups, in the rehearsal and the recording of two image sizes
    assert run["missing_waits"] == 0


def test_without_its_update_a_step_is_recorded_all_the_same() -> None:
    run = ask("fused_runs", "fault: the update does not compile")
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    (line,) = run["said"]
    assert line.startswith("capturing the step with the fused update as a CUDA graph failed (made to fail)")
    assert run["recorded"] and not run["fused_update"]
    assert complaints_about_run({**run, "said": []}) == []


def test_a_fixed_first_stage_has_a_smaller_graph() -> None:
    run, whole = (ask("fused_runs", name) for name in ("first stage cooled", "muon"))
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    assert run["fused_update"] and run["beside_backward"] == 6  # trained at two sizes, and fixed at one
    further = run["all"]["captured"] - whole["all"]["captured"]
    assert 40 < further <= 66  # its graph and 4 operations in both others; a graph with all of it would add 78


def test_both_image_sizes_are_trained() -> None:
    run = ask("runs", "recipe speedrun94")
    assert [block["size"] for block in run["blocks"]] == [24, 32, 32, 32]


@pytest.mark.parametrize("name", ["averaging every step", "averaging every step, plain", "SWAG every step"])
def test_the_tail_is_averaged_without_a_wait(name: str) -> None:
    run = ask("runs", name)
    assert run["swa_recorded"] == 6 == sum(step["averaged"] for block in run["blocks"] for step in block["steps"])
    (refresh,) = run["refresh"]
    (batch,) = refresh["steps"]  # the images of the three steps of an epoch, in one batch
    assert "waits" not in batch["counted"]
    beside_steps = 3  # the accuracy of the last epoch, the refresh, the final accuracy
    assert run["all"].get("replays", 0) == (run["num_steps"] + beside_steps if run["recorded"] else 0)


def test_the_executor_waits_for_the_images() -> None:
    assert ask("runs", "executor waits")
