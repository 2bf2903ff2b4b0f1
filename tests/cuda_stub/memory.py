"""Memory of the card that is used again, or freed, while a stream or a graph may still read it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import subject
import torch
from observe import card, make_task, watch_run
from torch import Tensor

# ---- the stub by itself


def used_again(order: Callable[[Tensor, Any], Any]) -> int:
    """A block that one stream made and another one copies from; then the first makes one in its place."""
    maker, reader = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(maker):
        block = torch.zeros(1 << 20, device="cuda")
    reader.wait_stream(maker)
    with card.running_beside(maker), card.counting() as counted:
        with torch.cuda.stream(reader):
            block.clone()
        order(block, reader)
        place = block.data_ptr()
        del block
        if order is waits:
            maker.wait_stream(reader)
        with torch.cuda.stream(maker):
            block = torch.zeros(1 << 20, device="cuda")
    return counted.get("reused", 0) if block.data_ptr() == place else -1


def nothing(block: Tensor, reader: Any) -> None:
    pass


def waits(block: Tensor, reader: Any) -> None:
    """See `used_again`."""


def freed_under_a_graph() -> dict[str, Any]:
    """A graph copies from memory that goes back to the system."""
    source, target = torch.ones(4 << 20, device="cuda"), torch.zeros(4 << 20, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target.copy_(source)
    with card.counting() as before:
        graph.replay()
    del source
    torch.cuda.empty_cache()
    with card.counting() as after:
        graph.replay()
    return {"before": before, "after": after}


# ---- runs


class CopiedBlocks(subject.TorchExecutor):
    """Makes blocks by copies, with rows: what a copy reads and writes, the stub can see. 20 images are one block."""

    def make(self, plan: subject.EpochPlan, size_px: int) -> subject.Block:
        block = super().make(plan, size_px)
        rows = torch.arange(plan.index.numel()).view(plan.index.shape).pin_memory().to("cuda", non_blocking=True)
        return replace(block, images=block.images.clone(), labels=block.labels.clone(), rows=rows)


def many_blocks() -> dict[str, Any]:
    """Three epochs of three blocks each, in recorded steps. Nothing waits here, as the clock of a run would.

    An event is late: memory that is given away before its reader is done would be written too early.
    """
    task = make_task(low_res_px=32)
    state = subject.start_state(task)
    step = subject.make_step(task, state, state.model)
    blocks = CopiedBlocks(task.executor.images, max_images=20).blocks((task.plan(epoch), 32) for epoch in range(3))
    torch.cuda.synchronize()
    places = []
    with card.late(), card.running_beside(blocks.executor.stream), card.counting() as counted:
        for block in blocks:
            places.append(block.images.data_ptr())
            step.begin(block)
            for i in range(len(block)):
                step(i)
            blocks.work_ahead()
    return {"recorded": isinstance(step, subject.CapturedStep), "counted": counted, "places": places}


def states_of_a_block() -> dict[str, Any]:
    """What torch's allocator does with each tensor of a block that was dropped right after it was taken."""
    task = make_task()
    executor = CopiedBlocks(task.executor.images, max_images=20)
    block = next(executor.blocks(task.plans()))
    places = {name: getattr(block, name).data_ptr() for name in ("images", "labels", "rows")}
    del block
    gc.collect()
    states = {b["address"]: b["state"] for segment in torch.cuda.memory_snapshot() for b in segment["blocks"]}
    return {name: states.get(place, "free") for name, place in places.items()}


# ---- faults put in on purpose, for the checks to find


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def without_record_stream() -> dict[str, Any]:
    """The allocator is not told that the training reads a block."""
    with replaced(torch.Tensor, "record_stream", lambda self, stream: None):
        return many_blocks()


def with_replaced_buffers() -> dict[str, Any]:
    """Each block brings its own labels, where the graph reads those of the recording."""
    begin = subject.CapturedStep.begin

    def begin_and_replace(self: subject.CapturedStep, block: subject.Block) -> None:
        begin(self, block)
        self.labels = self.labels.clone()

    with replaced(subject.CapturedStep, "begin", begin_and_replace):
        return watch_run(make_task())


CASES: dict[str, Callable[[], Any]] = {
    "used again": lambda: used_again(nothing),
    "used again, recorded stream": lambda: used_again(Tensor.record_stream),
    "used again after a wait": lambda: used_again(waits),
    "freed under a graph": freed_under_a_graph,
    "many blocks": many_blocks,
    "states of a block": states_of_a_block,
    "fault: no record_stream": without_record_stream,
    "fault: buffers replaced": with_replaced_buffers,
}
