"""One optimizer step: forward, backward, update. The host reads nothing back, so that it may run ahead of the device.

`Step` launches the step operation by operation. `GraphedStep` records it once per image side as a CUDA graph and
replays that: two copies and one launch per step, however many kernels it has ("Accelerating PyTorch with CUDA Graphs",
PyTorch blog, 2021). Shapes: B images of a step, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.job import Job, can_be_recorded
from fastcifar.machine import Machine
from fastcifar.optim import set_row
from fastcifar.state import State

Forward = Callable[[Tensor], Tensor]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes work and gives back what repeats it."""


def autocast(machine: Machine) -> torch.autocast:
    """The run's arithmetic."""
    return torch.autocast(machine.device.type, machine.dtype, enabled=machine.precision != "fp32")


def noise(machine: Machine, batch: int, side: int, generator: torch.Generator) -> Tensor:
    """[B, 3, S, S] channels_last as a run's batches are, random: zeros would have no variance to divide by."""
    x = torch.randn(batch, 3, side, side, generator=generator).to(machine.device, machine.dtype)
    return x.contiguous(memory_format=torch.channels_last)


class Step:
    """x [B, 3, S, S], y [B] -> new weights, at the row of the schedule's table that `state.step` says."""

    def __init__(self, job: Job, state: State, forward: Forward) -> None:
        self.job, self.state, self.forward = job, state, forward
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
        with autocast(self.job.machine):
            logits = self.forward(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.job.config.label_smoothing)
        state.scaler.scale(loss).backward()
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        state.loss_sum += loss.detach()


class GraphedStep(Step):
    """The same step out of memory of its own: batch, table and place in it lie on the device and are read there.

    `recorder` makes the replay. Rehearsal and recording leave the state as it was, also where they fail: an error of
    theirs passes through.
    """

    def __init__(self, job: Job, state: State, forward: Forward, recorder: Recorder) -> None:
        super().__init__(job, state, forward)
        device = job.machine.device
        self.table = torch.zeros(job.num_steps, 2, device=device)
        self.next = torch.zeros(1, dtype=torch.long, device=device)
        self.y = torch.zeros(job.batch_size, dtype=torch.long, device=device)
        generator, sides = torch.Generator().manual_seed(0), sorted({job.config.low_res_px, 32})
        self.x = {side: noise(job.machine, job.batch_size, side, generator) for side in sides}
        with state.preserved():
            self._rehearse()
            self.replays = {side: recorder(partial(self.at_next_row, side)) for side in self.x}

    def begin_epoch(self) -> None:
        self.table.copy_(self.state.schedule.table)
        self.next.fill_(self.state.step)

    def __call__(self, x: Tensor, y: Tensor) -> None:
        side = x.shape[-1]
        self.x[side].copy_(x)
        self.y.copy_(y)
        self.replays[side]()

    def at_next_row(self, side: int) -> None:
        """A step on the batch in `x[side]` and `y`. Selecting does not make the host wait, indexing would."""
        lr, momentum = self.table.index_select(0, self.next)[0].unbind()
        set_row(self.state.optimizers, lr, momentum)
        self.update(self.x[side], self.y)
        self.next += 1

    def _rehearse(self) -> None:
        """A step per side, so that kernels are loaded and chosen.

        On a stream of its own: what ran on the default one may not be recorded.
        """
        device = self.job.machine.device
        self.state.model.train()
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream:
            stream.wait_stream(torch.cuda.current_stream(device))  # weights and batch may still be on their way
        try:
            with torch.cuda.stream(stream):  # type: ignore[arg-type]  # None: nothing changes
                for side in self.x:
                    self.next.zero_()
                    self.at_next_row(side)
        finally:
            if stream:
                torch.cuda.synchronize(device)  # also after an error: then the state is put back


class CudaGraphs:
    """Records work as CUDA graphs that share one pool of memory: of those, one runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # DALI's threads go on
            work()
        return graph.replay


def make_step(job: Job, state: State, forward: Forward) -> Step:
    """The recorded step where that can be, else the plain one."""
    if can_be_recorded(job):
        stream = torch.cuda.current_stream(job.machine.device) if job.machine.device.type == "cuda" else None
        try:
            return GraphedStep(job, state, forward, CudaGraphs())
        except RuntimeError as e:
            if stream:
                torch.cuda.set_stream(stream)  # torch leaves the capture's stream current when a capture fails
            reason = " ".join(str(e).split())[:150]
            job.progress.say(f"recording the step as a CUDA graph failed ({reason}); going on without it")
    return Step(job, state, forward)
