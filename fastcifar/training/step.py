"""One optimizer step: forward, backward, update. The host reads nothing back, so that it may run ahead of the device.

`Step` launches the step operation by operation. `GraphedStep` records it once per image size as a CUDA graph and
replays that: two copies and one launch per step, however many kernels it has ("Accelerating PyTorch with CUDA Graphs",
PyTorch blog, 2021). Shapes: B images of a step, S x S pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.optim.optimizers import set_row
from fastcifar.training.hardware import Hardware
from fastcifar.training.state import State
from fastcifar.training.task import Task, can_be_recorded

log = logging.getLogger("fastcifar")

Forward = Callable[[Tensor], Tensor]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function and returns one that repeats its device work."""


def autocast(hardware: Hardware) -> torch.autocast:
    """Context of the forward pass: the precision of the run."""
    return torch.autocast(hardware.device.type, hardware.dtype, enabled=hardware.precision != "fp32")


def random_batch(hardware: Hardware, batch: int, size_px: int, generator: torch.Generator) -> Tensor:
    """Normal random images [B, 3, S, S], channels_last, in the dtype of the batches. Zeros would have no variance."""
    x = torch.randn(batch, 3, size_px, size_px, generator=generator).to(hardware.device, hardware.dtype)
    return x.contiguous(memory_format=torch.channels_last)


class Step:
    """x [B, 3, S, S], y [B] -> new weights, at the row of the schedule's table that `state.step` says."""

    def __init__(self, task: Task, state: State, forward: Forward) -> None:
        self.task, self.state, self.forward = task, state, forward
        self.rows: list[list[float]] = []

    def begin_epoch(self) -> None:
        """Reads the table, whose rows to come may have changed since the last epoch (plateau)."""
        self.rows = self.state.schedule.table.tolist()

    def __call__(self, x: Tensor, y: Tensor) -> None:
        set_row(self.state.optimizers, *self.rows[self.state.step])
        self.update(x, y)

    def update(self, x: Tensor, y: Tensor) -> None:
        """The step itself, at the learning rates that the optimizers hold."""
        state = self.state
        with autocast(self.task.hardware):
            logits = self.forward(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.task.config.optimizer.label_smoothing)
        state.scaler.scale(loss).backward()
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        state.loss_sum += loss.detach()


class GraphedStep(Step):
    """The same step on buffers of its own: batch, table and row number lie on the device and are read there.

    `recorder` makes the replay. Rehearsal and recording leave the state as it was, also where they fail: an error of
    theirs passes through.
    """

    def __init__(self, task: Task, state: State, forward: Forward, recorder: Recorder) -> None:
        super().__init__(task, state, forward)
        device = task.hardware.device
        self.table = torch.zeros(task.num_steps, 2, device=device)
        self.next = torch.zeros(1, dtype=torch.long, device=device)
        self.y = torch.zeros(task.batch_size, dtype=torch.long, device=device)
        generator = torch.Generator().manual_seed(0)
        self.x = {size: random_batch(task.hardware, task.batch_size, size, generator) for size in task.image_sizes}
        with state.preserved():
            self._rehearse()
            self.replays = {size: recorder(partial(self.at_next_row, size)) for size in self.x}

    def begin_epoch(self) -> None:
        self.table.copy_(self.state.schedule.table)
        self.next.fill_(self.state.step)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        size = x.shape[-1]
        self.x[size].copy_(x)
        self.y.copy_(y)
        self.replays[size]()

    def at_next_row(self, size: int) -> None:
        """A step on the batch in `x[size]` and `y`. Selecting does not make the host wait, indexing would."""
        lr, momentum = self.table.index_select(0, self.next)[0].unbind()
        set_row(self.state.optimizers, lr, momentum)
        self.update(self.x[size], self.y)
        self.next += 1

    def _rehearse(self) -> None:
        """Runs a step per image size, so that kernels are loaded and chosen.

        On a stream of its own: what ran on the default one may not be recorded.
        """
        device = self.task.hardware.device
        self.state.model.train()
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream:
            stream.wait_stream(torch.cuda.current_stream(device))  # weights and batch may still be on their way
        try:
            with torch.cuda.stream(stream):
                for size in self.x:
                    self.next.zero_()
                    self.at_next_row(size)
        finally:
            if stream:
                torch.cuda.synchronize(device)  # also after an error: then the state is put back


class CudaGraphs:
    """Records work as CUDA graphs that share one pool of memory: of those, one runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # DALI's threads keep running
            work()
        return graph.replay


def make_step(task: Task, state: State, forward: Forward) -> Step:
    """The recorded step where `can_be_recorded`, else the plain one."""
    device = task.hardware.device
    if can_be_recorded(task):
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            return GraphedStep(task, state, forward, CudaGraphs())
        except RuntimeError as e:
            if stream:
                torch.cuda.set_stream(stream)  # torch leaves the capture's stream current when a capture fails
            reason = " ".join(str(e).split())[:150]
            log.warning("recording the step as a CUDA graph failed (%s); going on without it", reason)
    return Step(task, state, forward)
