"""A recording may fail at any place: the state is then what it was, and the plain step goes on from there."""

import failures
import pytest
from checks import complaints_about_recording, complaints_about_run
from results import ask, marks

pytestmark = marks

ON_THE_CARD = [name for name in failures.CASES if not name.startswith(("fault", "cpu", "run"))]
SUCCEEDS = {"succeeds muon", "succeeds sgd", "succeeds fp32", "succeeds fp16", "launches outside"}


@pytest.mark.parametrize("name", ON_THE_CARD)
def test_the_state_is_what_it_was(name: str) -> None:
    told = ask("failures", name)
    assert complaints_about_recording(told, name in SUCCEEDS) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a launch of the update fails", "CUDA error"), ("out of memory, rehearsal of the second size", "out of memory"),
     ("fork not joined", "unjoined")],
)  # fmt: skip
def test_the_reason_is_said(name: str, reason: str) -> None:
    (line,) = ask("failures", name)["said"]
    assert reason in line


def test_a_run_whose_recording_fails_trains_to_its_end() -> None:
    run = ask("failures", "run")
    assert not run["recorded"] and sum(len(block["steps"]) for block in run["blocks"]) == run["num_steps"]
    assert complaints_about_run({**run, "may_be_recorded": False}) == []


def test_a_run_whose_evaluation_is_not_recorded_keeps_the_recorded_step() -> None:
    run = ask("failures", "run, evaluation fails")
    (line,) = run["said"]
    assert run["recorded"] and line.startswith("capturing the evaluation as a CUDA graph failed")
    assert run["all"]["replays"] == run["num_steps"] + 2  # the refresh, and an epoch's evaluation; not the final one
    assert complaints_about_run(run) == []


@pytest.mark.parametrize("name", ["succeeds", "first size fails", "second size fails"])
def test_real_kernels_leave_nothing_behind_either(name: str) -> None:
    told = ask("failures", f"cpu, {name}")
    assert told == {"failed": name != "succeeds", "changed": [], "gradients": 0}
