"""What must be so of a run under the stub. Each check gives its complaints as sentences; none is as it should be."""

from __future__ import annotations

from typing import Any

REPLAYED = {"copies_on_device": 2, "replays": 1}
"""All that a recorded step asks for: its batch's images and labels are copied into place, then its graph is started."""
MOST_TO_AVERAGE = 2
"""Launches after a step whose weights go into the average."""
NEVER = ("illegal", "outside", "unordered")
NEVER_IN_A_STEP = ("waits", "copies_to_device", "copies_to_host", "pageable_copies", "frees")
NEVER_IN_A_BATCH = ("waits", "copies_to_host", "pageable_copies", "frees", "replays")
MOST_PLAN_COPIES = 6
"""An epoch's plan goes to the card with its first batch: so many tensors, from pinned memory."""


def complaints_about_run(run: dict[str, Any], waits_per_step: int = 0) -> list[str]:
    """`waits_per_step` are expected in a plain step; each of them reads a number back."""
    found = [f"{run['all'][name]} x {name}" for name in NEVER if run["all"].get(name)]
    if run["recorded"] != run["may_be_recorded"]:
        found.append(f"recorded: {run['recorded']}, while that it can be is {run['may_be_recorded']}: {run['said']}")
    num_steps = sum(len(epoch["steps"]) for epoch in run["epochs"])
    if run["recorded"]:
        if run["all"].get("replays") != num_steps:
            found.append(f"{run['all'].get('replays')} replays in {num_steps} steps")
        if run["place"] != run["num_steps"]:
            found.append(f"the card stands at row {run['place']} of the schedule after {run['num_steps']} steps")
    for epoch in [*run["epochs"], *run["refresh"]]:
        replayed = run["recorded"] and epoch["trains"]
        for i, step in enumerate(epoch["steps"]):
            wrong = complaints_about_step(step, replayed, waits_per_step if epoch["trains"] else 0)
            found += [f"step {i} of an epoch: {what}" for what in wrong]
        for i, batch in enumerate(epoch["batches"]):
            found += [f"batch {i} of an epoch: {what}" for what in complaints_about_batch(batch, first=i == 0)]
    return found


def complaints_about_step(step: dict[str, int], replayed: bool, waits: int = 0) -> list[str]:
    if replayed:
        launches = step.get("launches", 0)
        rest = {name: n for name, n in step.items() if name != "launches"}
        return [str(step)] if rest != REPLAYED or launches > MOST_TO_AVERAGE else []
    allowed = {"waits": waits, "copies_to_host": waits}
    return [f"{step[name]} x {name}" for name in NEVER_IN_A_STEP if step.get(name, 0) != allowed.get(name, 0)]


def complaints_about_batch(batch: dict[str, int], first: bool) -> list[str]:
    found = [f"{batch[name]} x {name}" for name in NEVER_IN_A_BATCH if batch.get(name)]
    if batch.get("copies_to_device", 0) > (MOST_PLAN_COPIES if first else 0):
        found.append(f"{batch['copies_to_device']} x copies_to_device")
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
    expected = {"gradients": 0, "stream_kept": True, "capturing": False, "training": False, "count": 3, "step": 0}
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
