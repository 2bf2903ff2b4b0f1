"""How much a step and its batch ask of the card, and what they cost the host."""

import pytest
from results import ask, marks

pytestmark = marks

MOST_LAUNCHES = {"muon": 360, "sgd": 200}
"""In a step of speedrun94. Each kernel is some microseconds of the card: more of them is to be a decision."""
MOST_NODES = {"muon": 380, "sgd": 200}
"""In the graph of a step: launches, copies and memsets."""
MOST_LAUNCHES_IN_A_BATCH = 20
OPTIMIZERS = sorted(MOST_LAUNCHES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_recorded_step_is_two_copies_and_a_replay(optimizer: str) -> None:
    told = ask("runs", f"host time, recorded {optimizer}")
    assert told["recorded"] and told["captured"] <= MOST_NODES[optimizer] * len(told["sizes"])
    for size in told["sizes"].values():
        assert size["step"] == {"copies_on_device": 2, "replays": 1}
        assert set(size["batch"]) == {"launches"} and size["batch"]["launches"] <= MOST_LAUNCHES_IN_A_BATCH


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_step_stays_within_its_launches(optimizer: str) -> None:
    told = ask("runs", f"host time, plain {optimizer}")
    assert not told["recorded"]
    for size in told["sizes"].values():
        assert size["step"]["launches"] <= MOST_LAUNCHES[optimizer]
        assert set(size["step"]) <= {"launches", "library_calls", "copies_on_device", "memsets"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_replay_costs_the_host_next_to_nothing(optimizer: str) -> None:
    """7 us against 1,500 to 3,100 where this was written; the least of twelve, as the machine may be busy."""
    recorded, plain = (ask("runs", f"host time, {kind} {optimizer}")["sizes"] for kind in ("recorded", "plain"))
    for size in recorded:
        assert recorded[size]["least_us"] < min(1000, plain[size]["least_us"] / 5)


def test_cutout_and_the_wide_network_stay_within_their_launches() -> None:
    run = ask("runs", "recipe accurate96")
    assert run["all"]["captured"] <= 2 * 500
    assert max(batch["launches"] for epoch in run["epochs"] for batch in epoch["batches"]) <= 40
