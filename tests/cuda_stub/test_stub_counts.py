"""How much a step, a block and an update ask of the card, and what they cost the host. A rise is to be a decision."""

import pytest
from observe import ALL_TRAINED
from results import ask, marks

pytestmark = marks

MOST_LAUNCHES = {"muon": 244, "sgd": 169}
"""In a step of the full network that trains all weights, of 20 images. Each kernel is some microseconds of the card.
Nine are for the borders before the pools, which the fused kernels write."""
MOST_NODES = {"muon": 284, "sgd": 194}
"""In the graph of a step: launches, copies and memsets."""
MOST_NODES_FP16 = {"muon": 299, "sgd": 219}
"""With the loss scale, the checks for overflow and undoing a step."""
MOST_LAUNCHES_FUSED = 193
"""In such a step with the fused kernels: 4 for each of the 7 batch norms and what stands around it."""
MOST_NODES_FUSED = {ALL_TRAINED: 66, "speedrun94": 63, "accurate96": 70, "onecycle30": 59}
"""In the graph of a step with the fused kernels and the fused update, by recipe; with the optimizers 240, 287, 132."""
MOST_OF_AN_UPDATE = {"Muon": 107, "UncompiledSGD": 3, "CapturableSGD": 20}
"""Launches, copies and memsets of all weights of the full network. cuBLAS counts as one launch a call."""
MOST_LAUNCHES_OF_A_BLOCK = 21
MOST_LAUNCHES_TO_AVERAGE = 1
OPTIMIZERS = sorted(MOST_LAUNCHES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "most"), [("recorded", MOST_NODES), ("fp16", MOST_NODES_FP16)])
def test_a_recorded_step_is_a_replay_and_nothing_else(kind: str, most: dict[str, int], optimizer: str) -> None:
    told = ask("runs", f"host time, {kind} {optimizer}")
    assert told["recorded"] and told["captured"] <= most[optimizer] * len(told["sizes"])
    for size in told["sizes"].values():
        assert size["step"] == {"replays": 1}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["recorded", "plain"])
def test_a_block_stays_within_its_launches(kind: str, optimizer: str) -> None:
    """The next one is made while the steps of this one run: then nothing is left to do when it is taken."""
    for size in ask("runs", f"host time, {kind} {optimizer}")["sizes"].values():
        block = size["block"]
        assert block["next"] == {}
        assert set(block["ahead"]) == {"launches", "copies_to_device"}
        assert block["ahead"]["launches"] <= MOST_LAUNCHES_OF_A_BLOCK and block["ahead"]["copies_to_device"] == 1
        expected = {"launches": 2, "copies_on_device": 2, "copies_to_device": 1}
        assert block["begin"] == (expected if kind == "recorded" else {})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plain_step_stays_within_its_launches(optimizer: str) -> None:
    told = ask("runs", f"host time, plain {optimizer}")
    assert not told["recorded"]
    for size in told["sizes"].values():
        assert size["step"]["launches"] <= MOST_LAUNCHES[optimizer]
        assert set(size["step"]) <= {"launches", "library_calls", "copies_on_device", "memsets"}


@pytest.mark.parametrize(("recipe", "most"), MOST_NODES_FUSED.items())
def test_a_step_with_the_fused_update_stays_within_its_operations(recipe: str, most: int) -> None:
    told = ask("fused_runs", f"host time, {recipe}")
    if not told["fused"]:
        pytest.skip("Triton does not run on the stub here")
    assert told["recorded"] and told["captured"] <= most * told["forms"]
    for size in told["sizes"].values():
        assert size["step"] == {"replays": 1}
        assert size["block"]["begin"] == {"launches": 3, "copies_on_device": 2, "copies_to_device": 1}


def test_a_step_with_fused_kernels_stays_within_its_launches() -> None:
    run = ask("fused_runs", "plain")
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    steps = [step["counted"]["launches"] for block in run["blocks"] for step in block["steps"] if not step["averaged"]]
    assert steps and max(steps) <= MOST_LAUNCHES_FUSED


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["recorded", "plain"])
def test_updates_stay_within_their_operations(kind: str, optimizer: str) -> None:
    for update in ask("runs", f"host time, {kind} {optimizer}")["updates"]:
        counted = update["counted"]
        operations = sum(counted.get(name, 0) for name in ("launches", "copies_on_device", "memsets"))
        assert operations <= MOST_OF_AN_UPDATE[update["name"]], counted
        assert set(counted) <= {"launches", "library_calls", "copies_on_device", "memsets", "allocations"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_averaging_is_one_launch(optimizer: str) -> None:
    told = ask("runs", f"host time, recorded {optimizer}")
    assert told["average"] == {"launches": MOST_LAUNCHES_TO_AVERAGE}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_replay_costs_the_host_next_to_nothing(optimizer: str) -> None:
    """4 us against 1,500 to 3,100 where this was written; the least of fifteen, as the machine may be busy."""
    recorded, plain = (ask("runs", f"host time, {kind} {optimizer}")["sizes"] for kind in ("recorded", "plain"))
    for size in recorded:
        assert recorded[size]["step_us"] < min(1000, plain[size]["step_us"] / 5)


def test_cutout_and_the_wide_network_stay_within_their_launches() -> None:
    run = ask("runs", "recipe accurate96")
    assert run["all"]["captured"] <= 2 * 345 + 560  # a step per image size, evaluation, refresh
    assert max(block["ahead"]["counted"].get("launches", 0) for block in run["blocks"]) <= 40


def test_a_fixed_stem_saves_launches_at_full_size() -> None:
    always, fixed = (ask("runs", name)["all"]["captured"] for name in ("bf16 muon", "stem fixed"))
    assert fixed <= always - 3  # gradients of the first convolution's input, of the activation and of the biases


def test_the_kernel_of_a_fixed_stem_saves_operations() -> None:
    """The stem's convolution, its activation, the casts of its weights and the gather of the images are one kernel."""
    always, fixed = (ask("fused_runs", name) for name in ("muon", "stem fixed"))
    if not fixed["fused"]:
        pytest.skip("Triton does not run on the stub here")
    assert fixed["all"]["captured"] <= always["all"]["captured"] - 8


@pytest.mark.parametrize("name", ["recipe speedrun94", "plain muon", "no tail"])
def test_the_end_of_an_epoch_waits_three_times(name: str) -> None:
    """The clock stops, the loss is read, the clock goes on."""
    ends = [block["end"]["counted"] for block in ask("runs", name)["blocks"][:-1]]
    assert ends and all(end == {"launches": 1, "copies_on_device": 1, "copies_to_host": 1, "waits": 3} for end in ends)


@pytest.mark.parametrize(("name", "most"), [("epoch", 2 * 65), ("final", 2 * 65 + 5 * 65)])
def test_a_recorded_evaluation_is_one_replay(name: str, most: int) -> None:
    """2,500 images, so two batches; the final one has five further views of a quarter of them, in one batch."""
    recorded, plain = (ask("runs", f"evaluation, {kind}")[name] for kind in ("recorded", "plain"))
    reading = {"copies_to_host": 1, "pageable_copies": 1, "waits": 1}
    assert recorded == {**reading, "replays": 1}
    assert most / 2 < plain["launches"] <= most and plain["waits"] == 1


def test_a_recorded_refresh_is_one_replay_on_images_that_are_copied() -> None:
    """Of 60 images, in one batch: the mean of the weights is one launch, and a graph reads fixed addresses."""
    recorded, plain = (ask("runs", f"evaluation, {kind}")["average"] for kind in ("recorded", "plain"))
    assert recorded["replays"] == 1 and "waits" not in recorded and "waits" not in plain
    assert recorded["launches"] <= 20 < 60 < plain["launches"]


def test_to_record_the_evaluation_costs_no_more_than_a_plain_one() -> None:
    """Each runs once, and is recorded."""
    recorded, plain = (ask("runs", f"evaluation, {kind}") for kind in ("recorded", "plain"))
    kinds = ("launches", "copies_on_device", "memsets")
    operations = sum(plain[name].get(kind, 0) for name in ("epoch", "final") for kind in kinds)
    assert recorded["recording"]["launches"] <= operations and recorded["recording"]["captured"] <= operations + 10


def test_an_evaluation_with_fused_kernels_has_fewer_operations() -> None:
    """Pool, bias and activation of a layer are one kernel, which also writes the border of the next pooled layer."""
    plain, fused = ask("runs", "evaluation, recorded"), ask("fused_runs", "evaluation")
    if not fused["fused"]:
        pytest.skip("Triton does not run on the stub here")
    assert fused["epoch"] == plain["epoch"] and fused["final"] == plain["final"]
    assert fused["recording"]["captured"] <= 0.75 * plain["recording"]["captured"]


def test_borders_and_filters_are_made_once_in_a_run() -> None:
    """The set-up makes neither: its launches are the mean, the deviation and a copy of the images, twice each."""
    told = ask("runs", "preparation")
    (made,) = told["made"]
    assert made["launches"] > 4 and told["set_up"].get("library_calls", 0) == 0 < made["library_calls"]
