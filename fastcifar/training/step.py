"""One optimizer step: forward, backward, update. The host reads nothing back, so that it may run ahead of the device.

`Step` launches the step operation by operation. `CapturedStep` captures it once per image size as a CUDA graph and
replays that: one launch per step, however many kernels it has ("Accelerating PyTorch with CUDA Graphs", PyTorch blog,
2021). Shapes: B images of a step, M images of a block, C = 3 channels, S x S pixels.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcifar.augment.executor import Block, Draws
from fastcifar.augment.images import pinned
from fastcifar.augment.stem import stem
from fastcifar.models.head_loss import head_loss
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.fused_update import FusedUpdate
from fastcifar.optim.optimizers import set_row
from fastcifar.training import fixed_parts
from fastcifar.training.fused_step import make_fused_update, makes_images_from_px
from fastcifar.training.hardware import Hardware
from fastcifar.training.parts import require_scalar, transformed
from fastcifar.training.state import State
from fastcifar.training.task import Task

log = logging.getLogger("fastcifar")

Forward = Callable[[Tensor], Tensor]
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function and returns one that repeats its device work."""


def autocast(hardware: Hardware) -> torch.autocast:
    """Context of the forward pass: the precision of the run."""
    return torch.autocast(hardware.device.type, hardware.dtype, enabled=hardware.dtype != torch.float32)


def random_batch(hardware: Hardware, batch: int, size_px: int, generator: torch.Generator) -> Tensor:
    """Normal random images [B, 3, S, S], channels_last, in the dtype of the batches. Zeros would have no variance."""
    x = torch.randn(batch, 3, size_px, size_px, generator=generator).to(hardware.device, hardware.dtype)
    return x.contiguous(memory_format=torch.channels_last)


class Step:
    """Step i of a block -> new weights, at the row of the schedule's table that `state.step` says."""

    capture: Capture | None = None
    """What the step was captured with, for more of the run."""
    fused: FusedUpdate | None = None
    """The loss and the update by kernels, in a captured step alone."""

    def __init__(self, task: Task, state: State, forward: Forward) -> None:
        self.task, self.state, self.forward = task, state, forward
        self.block: Block | None = None

    def begin(self, block: Block) -> None:
        """Sets the block that the next steps read."""
        self.block = block

    def __call__(self, i: int) -> None:
        assert self.block is not None
        task, step = self.task, self.state.step
        x, y = self.block.batch(i)
        cooling = self.state.rates.cooling
        set_row(self.state.optimizers, *self.state.rates[step], cooling.factor(step))
        fixed_parts.fix_first_stage(self.state.model, cooling.is_over(step) and task.world.size == 1)
        with task.parts.draws(task.config.seed, step, x.device):
            if task.parts.transform:
                x, y = transformed(task.parts.transform, x, y)
            self.update(x, y)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward and update on x [B, 3, S, S] and y [B], at the learning rates that the optimizers hold."""
        state = self.state
        with autocast(self.task.hardware):
            logits = self.forward(x)
        loss = self.task.loss(logits.float(), y)
        require_scalar(loss)
        state.scaler.scale(loss).backward()
        if self.task.world.size > 1:
            fixed_parts.drop_gradients(self.task, state, x.shape[-1])
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad()  # sets them to None; apex takes no argument
        state.scaler.update()
        state.loss_sum += loss.detach()


class CapturedStep(Step):
    """The same step on buffers of its own: block, table and both row numbers lie on the device and are read there.

    A step is one replay and nothing else. A block is copied into the buffers once, as a graph reads fixed addresses.
    `capture` makes the replay. Rehearsal and capture restore the state in the end, also when they raise.
    With a fused update the loss and the update are a few kernels, and the forward pass takes weights in bf16.
    """

    def __init__(
        self, task: Task, state: State, forward: Forward, capture: Capture, fused: FusedUpdate | None = None
    ) -> None:
        super().__init__(task, state, forward)
        self.capture, self.fused = capture, fused
        device, batch = task.hardware.device, task.batch_size
        steps = min(task.steps_per_epoch, max(1, task.executor.max_images // batch))
        self.draws_from_px = makes_images_from_px(task, state)
        largest = max(size for size in task.image_sizes if not self.takes_draws(size))
        self.table = torch.zeros(task.num_steps, 2, device=device)
        self.counters = torch.zeros(2, dtype=torch.long, device=device)
        self.next, self.position = self.counters.split(1)  # row of the table, step of the block
        self.factors = fixed_parts.factors(task, state)
        self.pixels = torch.zeros(steps * batch * 3 * largest**2, dtype=task.hardware.dtype, device=device)
        self.labels = torch.zeros(steps * batch, dtype=torch.long, device=device)
        self.rows = torch.arange(steps * batch, device=device).view(steps, batch)
        self.draws = Draws(task.executor.images, torch.zeros(steps * batch, 6, dtype=torch.int32, device=device),
                           task.executor.cutout_px)  # fmt: skip
        with state.preserved():
            self._rehearse()
            self.replays: dict[tuple[int, bool], Callable[[], None]] = {}
            for form in fixed_parts.step_forms(task):
                self.position.zero_()
                self.replays[form] = capture(partial(self.at_next_row, *form))
        task.executor.draws_from_px = self.draws_from_px
        self.size_px = largest

    def begin(self, block: Block) -> None:
        size, count = block.size_px, len(block.labels)
        self.images(size)[:count].copy_(block.content)
        self.labels[:count].copy_(block.labels)
        if block.rows is not None:
            self.rows[: len(block)].copy_(block.rows)
        table = self.state.rates.table.to(self.table.dtype)
        self.table.copy_(pinned(table, self.table.device), non_blocking=True)
        self.next.fill_(self.state.step)
        self.position.zero_()
        if self.fused:
            self.fused.arena.refresh()  # the weights may be those of a checkpoint, or from before the rehearsal
        self.size_px = size

    def __call__(self, i: int) -> None:
        self.replays[self.size_px, self.state.rates.cooling.is_over(self.state.step)]()

    def images(self, size_px: int) -> Tensor:
        """The buffer as images [M, S, S, C], or the table of their draws."""
        if self.takes_draws(size_px):
            return self.draws.table
        count = len(self.labels)
        return self.pixels[: count * 3 * size_px**2].view(count, size_px, size_px, 3)

    def at_next_row(self, size_px: int, fixed: bool = False) -> None:
        """A step on the rows at `position`; fixed: the first stage is. Selecting does not make the host wait, indexing
        would."""
        fixed_parts.fix_first_stage(self.state.model, fixed)
        factor = None if self.factors is None else self.factors.index_select(0, self.next)
        if self.fused:
            taken = self.fused.take(self.images(size_px), self.labels, self.rows, self.table, self.counters, factor)
            self._update_fused(self.fused, self.input_of(taken[0]), taken[1])
            return
        lr, momentum = self.table.index_select(0, self.next)[0].unbind()
        set_row(self.state.optimizers, lr, momentum, 1.0 if factor is None else factor[0])
        rows = self.rows.index_select(0, self.position)[0]
        self.update(self.input_of(self.images(size_px).index_select(0, rows)), self.labels.index_select(0, rows))
        self.counters += 1

    def _update_fused(self, fused: FusedUpdate, x: Tensor, y: Tensor) -> None:
        """`update`, with the sum of the loss and the counters."""
        model = self.state.model
        assert isinstance(model, ResNet9)
        with autocast(self.task.hardware), fused.arena.lent():
            features = model.features(x)
        smoothing = self.task.config.optimizer.label_smoothing
        loss = head_loss(features.detach(), model.head.weight, y, model.logit_scale, smoothing)
        if features.requires_grad:  # not where the classifier alone is trained
            features.backward(loss.d_features)
        fused.finish(loss, self.state.loss_sum, self.counters)

    def takes_draws(self, size_px: int) -> bool:
        """Whether the images of this size come as draws, and one kernel makes the stem's output of them."""
        return self.draws_from_px is not None and size_px >= self.draws_from_px

    def input_of(self, content: Tensor) -> Tensor:
        """What the network takes: images [B, S, S, C] as [B, C, S, S], of draws [B, 6] what the stem makes of them."""
        if content.ndim > 2:
            return content.permute(0, 3, 1, 2)
        model: Any = self.state.model
        border = model.stages[0].stage.kernel
        return stem(replace(self.draws, table=content), model.stem, self.task.config.model.activation, border)

    def _rehearse(self) -> None:
        """Runs a step per image size, so that kernels are loaded and chosen.

        On a stream of its own: what ran on the default one may not be captured.
        """
        device, batch = self.task.hardware.device, self.task.batch_size
        generator = torch.Generator().manual_seed(0)
        self.state.model.train()
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if stream:
            stream.wait_stream(torch.cuda.current_stream(device))  # weights and buffers may still be on their way
        try:
            with torch.cuda.stream(stream):
                for size, fixed in fixed_parts.step_forms(self.task):
                    if not self.takes_draws(size):  # else it reads the first image, time and again
                        x = random_batch(self.task.hardware, batch, size, generator)
                        self.images(size)[:batch].copy_(x.permute(0, 2, 3, 1))
                    self.next.zero_()
                    self.position.zero_()
                    self.at_next_row(size, fixed)
        finally:
            if stream:
                torch.cuda.synchronize(device)  # also after an error: then the state is put back


class CudaGraphs:
    """Captures work as CUDA graphs that share one pool of memory.

    One runs at a time, and none leaves anything there that another one or a later replay would read.
    """

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: DALI's threads keep running
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            work()
        # Up to torch 2.11, a capture launches work of its own on its stream, and nothing waits for it.
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay


@contextmanager
def may_fail(what: str, device: torch.device) -> Iterator[None]:
    """Context of a capture. Where it fails, a warning is logged, and the program goes on after the block."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    try:
        yield
    except Exception as e:  # of torch, or of Triton's compiler
        if stream:
            failed = torch.cuda.current_stream(device)  # torch leaves the capture's stream current when a capture fails
            torch.cuda.set_stream(stream)
            stream.wait_stream(failed)  # where the state was put back
        reason = " ".join(str(e).split())[:150]
        log.warning("capturing %s as a CUDA graph failed (%s); going on without it", what, reason)


def make_step(task: Task, state: State, forward: Forward) -> Step:
    """The captured step where that can be, with the fused update where that can be, else the plain one."""
    if task.can_capture:
        if host := task.parts.runs_on_the_host:
            log.warning("the %s from Python cannot be part of a CUDA graph: the step is launched without one", host)
            return Step(task, state, forward)
        if fused := make_fused_update(task, state, forward):
            with may_fail("the step with the fused update", task.hardware.device):
                return CapturedStep(task, state, forward, CudaGraphs(), fused)
        with may_fail("the step", task.hardware.device):
            return CapturedStep(task, state, forward, CudaGraphs())
    return Step(task, state, forward)
