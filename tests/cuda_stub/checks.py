"""What must be so of a run under the stub. Each check gives its complaints as sentences; none is as it should be."""

from __future__ import annotations

from typing import Any

REPLAYED = {"replays": 1}
"""All that a recorded step asks for."""
MOST_TO_AVERAGE = 2
"""Launches after a step whose weights go into the average."""
MOST_FOR_SWAG = 6
"""The same where their spread and deviations are kept, too."""
NEVER = ("illegal", "outside", "unordered", "reused", "freed")
NEVER_IN_A_STEP = ("waits", "copies_to_device", "copies_to_host", "pageable_copies", "frees")
NEVER_IN_A_BLOCK = ("waits", "copies_to_host", "pageable_copies", "frees", "replays")
MOST_PLAN_COPIES = 1
"""A plan goes to the card with its block: one table, from pinned memory."""
MOST_TO_BEGIN = {"launches": 2, "copies_on_device": 3, "copies_to_device": 1}
"""A recorded step takes a block by copies of images, labels and rows, and of the schedule's table; it sets two rows."""
MOST_TO_MAKE = {"launches": 30, "copies_on_device": 1, "allocations": 1}
"""Who takes a batch of a block of draws, as the refresh does, makes its images then; with cutout."""
MOST_WAITS_AT_AN_END = 3
"""The clock stops, the loss is read, the clock goes on."""
FEWEST_EVALUATIONS = 2
"""After the last epoch and in the end; one replay each."""
MOST_WAITS_OF_AN_EVALUATION = 3
"""The clock stops and goes on, the accuracy is read."""


def complaints_about_run(run: dict[str, Any], most_to_average: int = MOST_TO_AVERAGE) -> list[str]:
    found = [f"{run['all'][name]} x {name}" for name in NEVER if run["all"].get(name)]
    found += [f"{n} x the update or the step does not wait" for n in [run.get("missing_waits")] if n]
    if run["lost"]:
        found.append(f"graphs read {run['lost']} buffers that are no more")
    if run["recorded"] != run["may_be_recorded"]:
        found.append(f"recorded: {run['recorded']}, while that it can be is {run['may_be_recorded']}: {run['said']}")
    num_steps = sum(len(block["steps"]) for block in run["blocks"])
    if run["recorded"]:
        if run["all"].get("replays", 0) < num_steps + FEWEST_EVALUATIONS:
            found.append(f"{run['all'].get('replays')} replays in {num_steps} steps: the evaluation is not one")
        if run["place"] not in (None, run["num_steps"]):  # None: a kernel counts, which does nothing here
            found.append(f"the card stands at row {run['place']} of the schedule after {run['num_steps']} steps")
    for i, block in enumerate([*run["blocks"], *run["refresh"]]):
        replayed = run["recorded"] and block["trains"]
        found += [f"block {i}: {what}" for what in complaints_about_block(block, replayed, run["fused_update"])]
        for j, step in enumerate(block["steps"]):
            wrong = complaints_about_step(step, replayed, most_to_average)
            found += [f"step {j} of block {i}: {what}" for what in wrong]
    for i, block in enumerate(run["blocks"][:-1]):  # with the last one the run ends too
        if (waits := block["end"]["counted"].get("waits", 0)) > MOST_WAITS_AT_AN_END + MOST_WAITS_OF_AN_EVALUATION:
            found.append(f"end of block {i}: {waits} x waits")
    return found


def complaints_about_step(step: dict[str, Any], replayed: bool, most_to_average: int = MOST_TO_AVERAGE) -> list[str]:
    counted = step["counted"]
    if replayed:
        most = most_to_average if step["averaged"] else 0
        free = {"launches", "allocations"} if most == MOST_FOR_SWAG else {"launches"}
        rest = {name: n for name, n in counted.items() if name not in free}
        return [str(counted)] if rest != REPLAYED or counted.get("launches", 0) > most else []
    return [f"{counted[name]} x {name}" for name in NEVER_IN_A_STEP if counted.get(name)]


def complaints_about_block(block: dict[str, Any], replayed: bool, fused_update: bool = False) -> list[str]:
    """About how it is made, and how the step takes it. A fused update then also writes its bf16 weights anew."""
    found = [] if block["waited"] else ["the training does not wait until it is made"]
    for part in ("next", "ahead"):
        made = block.get(part, {"counted": {}})["counted"]
        found += [f"{part}: {made[name]} x {name}" for name in NEVER_IN_A_BLOCK if made.get(name)]
        if made.get("copies_to_device", 0) > MOST_PLAN_COPIES:
            found.append(f"{part}: {made['copies_to_device']} x copies_to_device")
    taken = block["begin"]["counted"]
    most = MOST_TO_MAKE if block["drawn"] and not replayed else {}
    if replayed:
        most = MOST_TO_BEGIN | {"launches": MOST_TO_BEGIN["launches"] + fused_update}
    found += [f"begin: {n} x {name}" for name, n in taken.items() if n > most.get(name, 0)]
    return found


def complaints_about_layouts(seen: list[dict[str, Any]], dtype: str, any_layout: tuple[str, ...] = ()) -> list[str]:
    """Of what goes into and comes out of convolutions; `any_layout` names what may lie as it likes."""
    wrong = [
        tensor
        for tensor in seen
        if tensor["device"] != "cuda"
        or tensor["dtype"] != dtype
        or not (tensor["channels_last"] or tensor["what"] in any_layout)
    ]
    return sorted({str(tensor) for tensor in wrong}) + ([] if seen else ["no convolution was seen"])


def complaints_about_recording(told: dict[str, Any], succeeds: bool) -> list[str]:
    """The state after a step was made, recorded or given up, is the one before."""
    found = [] if told["recorded"] == succeeds else [f"recorded: {told['recorded']}; it said {told['said']}"]
    found += [f"{told[what]} {what}" for what in ("changed", "replaced") if told[what]]
    expected = {
        "gradients": 0,
        "stream_kept": True,
        "awaited": True,
        "capturing": False,
        "training": False,
        "count": 3,
        "step": 0,
    }
    found += [f"{name} is {told[name]}" for name, value in expected.items() if told[name] != value]
    lines = [line for line in told["said"] if "going on without it" in line]
    if len(lines) != (0 if succeeds else 1) or any("\n" in line for line in lines):
        found.append(f"it said {told['said']}")
    found += [f"then, in plain steps: {n} x {name}" for name, n in told["then"].items()
              if name in ("waits", "pageable_copies", "captured", *NEVER)]  # fmt: skip
    if told["while_recording"].get("unordered"):
        found.append("the recording did not wait for the work before it")
    if not told["then"].get("launches"):
        found.append("then nothing was launched")
    return found
