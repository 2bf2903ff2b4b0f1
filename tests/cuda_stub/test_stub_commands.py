"""The command line without a card: a run's folder, several seeds, an interruption, going on, memory that runs out."""

import pytest
from checks import complaints_about_run
from results import ask, marks

pytestmark = marks

BESIDE_STEPS = 3
"""Replays for the accuracy of the last epoch, the refresh of the batch norms, and the final accuracy."""


@pytest.mark.parametrize("name", ["one run", "one run, sgd"])
def test_a_run_leaves_its_folder(name: str) -> None:
    told = ask("command_runs", name)
    assert told["code"] == 0, told["stderr"]
    assert {"checkpoint.pt", "model.safetensors", "metrics.jsonl", "summary.json", "curves.png"} <= set(told["files"])
    assert told["last"]["num_steps"] == 12 and told["counted"]["replays"] == 12 + BESIDE_STEPS
    assert told["last"]["device"] == "Stub card" and told["last"]["precision"] == "bf16"


def test_several_seeds() -> None:
    told = ask("command_runs", "two seeds")
    assert told["code"] == 0 and told["last"]["seeds"] == [0, 1], told["stderr"]
    assert told["counted"]["replays"] == 2 * (12 + BESIDE_STEPS)  # each seed records anew
    assert {"runs.jsonl", "summary.json", "model.safetensors"} <= set(told["files"])


@pytest.mark.parametrize("name", ["interrupted", "interrupted, plain"])
def test_an_interrupted_run_goes_on(name: str) -> None:
    told = ask("command_runs", name)
    first, second = told["first"], told["second"]
    assert first["code"] == 128 + 15 and "continue with" in first["stdout"][-1]
    assert second["code"] == 0 and second["last"]["num_steps"] == 12, second["stderr"]
    replays = first["counted"].get("replays", 0) + second["counted"].get("replays", 0)
    assert replays == (0 if "plain" in name else 12 + BESIDE_STEPS)


@pytest.mark.parametrize("name", ["resumed", "resumed, sgd", "resumed, plain"])
def test_a_resumed_run_stands_at_the_right_row(name: str) -> None:
    run = ask("command_runs", name)
    assert complaints_about_run(run) == []
    assert 0 < sum(len(block["steps"]) for block in run["blocks"]) < run["num_steps"]


def test_memory_that_runs_out_is_one_line() -> None:
    told = ask("command_runs", "out of memory")
    assert told["code"] == 2
    assert "out of memory on Stub card" in told["stderr"] and "Traceback" not in told["stderr"]
