"""The stub by itself, through torch: what it carries out, what it counts, what a capture refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from stub import Card

card = Card()


def carries_out() -> dict[str, Any]:
    """Copies, memsets, fills and integer additions are real."""
    there = torch.arange(6.0).to("cuda")
    counter = torch.zeros(1, dtype=torch.long, device="cuda")
    counter += 3
    return {
        "copied": (there.clone().cpu() == torch.arange(6.0)).all().item(),
        "zeroed": torch.zeros(4, device="cuda").cpu().tolist(),
        "filled": torch.full((3,), 2.5, device="cuda", dtype=torch.bfloat16).cpu().tolist(),
        "counted": counter.item(),
        "all finite": bool(torch.full((2,), float("nan"), device="cuda").sum().isfinite()),
    }


def counts() -> dict[str, Any]:
    a, b = torch.ones(64, 64, device="cuda"), torch.ones(64, 64, device="cuda")
    pinned, pageable = torch.ones(8).pin_memory(), torch.ones(8)
    (a @ b).sum()
    actions: dict[str, Callable[[], Any]] = {
        "add": lambda: a + b,
        "product": lambda: a @ b,
        "fill": lambda: a.fill_(2.0),
        "to the card, pinned": lambda: pinned.to("cuda", non_blocking=True),
        "to the card": lambda: pageable.to("cuda"),
        "clone": lambda: a.clone(),
        "item": lambda: a[0, 0].item(),
        "synchronize": torch.cuda.synchronize,
    }
    told = {}
    for name, act in actions.items():
        with card.counting() as told[name]:
            act()
    return told


def order() -> dict[str, Any]:
    """Work on two streams, with and without something that puts it in order."""
    x, stream = torch.ones(8, device="cuda"), torch.cuda.Stream()

    def on_both(order: Callable[[], Any]) -> int:
        torch.cuda.synchronize()
        with card.counting() as counted:
            x.add(1)
            order()
            with torch.cuda.stream(stream):
                x.add(2)
        return counted.get("unordered", 0)

    event = torch.cuda.Event()
    return {
        "nothing": on_both(lambda: None),
        "wait_stream": on_both(lambda: stream.wait_stream(torch.cuda.current_stream())),
        "wait the other way round": on_both(lambda: torch.cuda.current_stream().wait_stream(stream)),
        "event": on_both(lambda: (event.record(), stream.wait_event(event))),
        "event of the host": on_both(lambda: (event.record(), event.synchronize())),
        "synchronize": on_both(torch.cuda.synchronize),
    }


def names() -> list[str]:
    card.forget_kernels()
    x = torch.ones(8, device="cuda")
    torch.nn.functional.silu(x)
    return list(card.kernels())


def replays() -> dict[str, Any]:
    """A recorded copy, memset, fill and addition are done at each replay, and not before."""
    source, target = torch.arange(4.0).cuda(), torch.zeros(4, device="cuda")
    filled, zeroed = torch.zeros(2, device="cuda"), torch.full((2,), 9.0, device="cuda")
    place = torch.zeros(1, dtype=torch.long, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with card.counting() as while_recording, torch.cuda.graph(graph):
        target.copy_(source)
        filled.fill_(7.0)
        zeroed.zero_()
        place += 1
    before = [t.cpu().tolist() for t in (target, filled, zeroed, place)]
    with card.counting() as while_replaying:
        for _ in range(3):
            graph.replay()
    after = [t.cpu().tolist() for t in (target, filled, zeroed, place)]
    return {"before": before, "after": after, "recording": while_recording, "replaying": while_replaying}


def in_capture(act: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """What torch says to `act` inside a capture, and whether capturing works again afterwards."""
    x, stream = torch.ones(16, device="cuda"), torch.cuda.current_stream()
    error = ""
    with card.counting() as counted:
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                x.add(1)
                act(x)
        except Exception as caught:
            error = str(caught)
    torch.cuda.set_stream(stream)
    again = torch.cuda.CUDAGraph()
    with torch.cuda.graph(again):
        x.add(1)
    return {"error": error.splitlines()[0] if error else "", "counted": counted}


def fork(x: torch.Tensor, join: bool) -> None:
    current, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(current)
    with torch.cuda.stream(other):
        x.add(2)
    if join:
        current.wait_stream(other)


def wait_for_earlier_work(x: torch.Tensor) -> None:
    event = torch.cuda.Event()
    event.record(torch.cuda.default_stream())
    event.wait()


def query_captured_event(x: torch.Tensor) -> None:
    event = torch.cuda.Event()
    event.record()
    event.query()


def launch_outside(x: torch.Tensor) -> None:
    with torch.cuda.stream(torch.cuda.default_stream()):
        x.add(1)


def fail_a_launch(x: torch.Tensor) -> None:
    card.fail_captured_launch(1)
    x.add(1)


def out_of_memory() -> dict[str, Any]:
    card.fail_allocations(True)
    error = ""
    try:
        torch.empty(1 << 28, device="cuda")
    except torch.OutOfMemoryError as caught:
        error = str(caught)
    card.fail_allocations(False)
    return {"error": error, "afterwards": torch.empty(1 << 28, device="cuda").numel()}


CASES: dict[str, Callable[[], Any]] = {
    "carries out": carries_out,
    "counts": counts,
    "names": names,
    "order": order,
    "replays": replays,
    "out of memory": out_of_memory,
    "capture: nothing": partial(in_capture, lambda x: None),
    "capture: item": partial(in_capture, lambda x: x[0].item()),
    "capture: synchronize": partial(in_capture, lambda x: torch.cuda.synchronize()),
    "capture: query": partial(in_capture, query_captured_event),
    "capture: fork, joined": partial(in_capture, partial(fork, join=True)),
    "capture: fork, not joined": partial(in_capture, partial(fork, join=False)),
    "capture: wait for earlier work": partial(in_capture, wait_for_earlier_work),
    "capture: launch outside": partial(in_capture, launch_outside),
    "capture: a launch fails": partial(in_capture, fail_a_launch),
}
