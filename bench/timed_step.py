"""Steps for `bench.step`: timed part by part, in NCHW, or on blocks that cost nothing to load."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.floors import PARTS
from fastcifar.augment.block import Block
from fastcifar.augment.executor import Executor
from fastcifar.augment.plan import EpochPlan
from fastcifar.optim.optimizers import set_row
from fastcifar.training.prepare import warm_up
from fastcifar.training.start import initial_state, preprocess
from fastcifar.training.state import State
from fastcifar.training.step import Forward, Step, autocast, make_step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task

UNTIMED_STEPS = 2
"""Number of first steps of an epoch that are not timed."""


class FixedBlocks(Executor):
    """Makes the blocks of a task once and gives them again and again, so that loading costs nothing."""

    def __init__(self, task: Task) -> None:
        self.made: dict[tuple[int, int], Block] = {}
        self.inner = task.executor
        super().__init__(self.inner.images, self.inner.cutout_px, self.inner.max_images)
        self.stream = self.inner.stream
        for _ in self.blocks(task.plans()):
            pass

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block that was made first of so many steps."""
        key = len(plan), size_px
        if key not in self.made:
            self.made[key] = self.inner.make(plan, size_px)
        return self.made[key]


class NchwStep(Step):
    """The plain step on batches in NCHW."""

    def update(self, x: Tensor, y: Tensor) -> None:
        super().update(x.contiguous(), y)


class TimedStep(Step):
    """The plain step, with the device idle before and after each part."""

    def __init__(
        self, task: Task, state: State, forward: Forward, part: Stopwatch, layout: torch.memory_format
    ) -> None:
        super().__init__(task, state, forward)
        self.part, self.layout = part, layout

    def __call__(self, i: int) -> None:
        assert self.block is not None
        with self.part("augment"):
            x, y = self.block.batch(i)
            x = x.contiguous(memory_format=self.layout)
        with self.part("optimizer"):
            set_row(self.state.optimizers, *self.state.rates[self.state.step])
        self.update(x, y)

    def update(self, x: Tensor, y: Tensor) -> None:
        state = self.state
        with self.part("forward"):
            with autocast(self.task.hardware):
                logits = self.forward(x)
            loss = F.cross_entropy(logits, y, label_smoothing=self.task.config.optimizer.label_smoothing)
            state.loss_sum += loss.detach()
        with self.part("backward"):
            state.scaler.scale(loss).backward()
        with self.part("optimizer"):
            for optimizer in state.optimizers:
                state.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            state.scaler.update()


def time_parts(task: Task, nchw: bool) -> dict[str, float]:
    """Median ms of each part of a step. The time of making a block is shared among its steps."""
    part, steps_s = Stopwatch(task.hardware.device), []
    state, step = set_up(task, nchw, part)
    blocks = task.executor.blocks(timed_apart(task))
    while state.step < task.num_steps:
        with part("block"):
            block = next(blocks)
        making_s = part.time_s["block"] / len(block)
        step.begin(block)
        for i in range(len(block)):
            part.time_s.clear()
            step(i)
            state.step += 1
            with part("averaging"):
                state.average.add(state.model)
            steps_s.append({**part.time_s, "augment": making_s + part.time_s["augment"]})
        part.time_s.clear()
    timed = steps_s[count_untimed(task) :]
    return {part: 1e3 * statistics.median(step_s[part] for step_s in timed) for part in PARTS}


def time_step(task: Task, nchw: bool) -> float:
    """Mean ms of a step, with the blocks. The device does not wait between steps, so only the sum is known."""
    stopwatch, untimed = Stopwatch(task.hardware.device), count_untimed(task)
    steps = train_epoch(task, *set_up(task, nchw))
    for _ in range(untimed):
        next(steps)
    with stopwatch("step"):
        for _ in steps:
            pass
    return 1e3 * stopwatch.time_s["step"] / (task.steps_per_epoch - untimed)


def count_untimed(task: Task) -> int:
    """Number of first steps that are not timed; at least one step is."""
    return min(UNTIMED_STEPS, task.steps_per_epoch - 1)


def timed_apart(task: Task) -> list[tuple[EpochPlan, int]]:
    """The plan of the first epoch in two parts, the second of which is timed: a block lies within one of them."""
    plan, untimed = task.plan(0), count_untimed(task)
    return [(plan.steps(0, untimed), 32), (plan.steps(untimed, task.steps_per_epoch), 32)]


def set_up(task: Task, nchw: bool, part: Stopwatch | None = None) -> tuple[State, Step]:
    """State and step after the warm-up. With a stopwatch the step times its parts.

    Without one it is the step of the training loop, recorded as a CUDA graph where possible; with `nchw` a plain one,
    because the buffers of a recorded step are channels_last.
    """
    state = initial_state(task, Stopwatch(task.hardware.device))
    layout = torch.contiguous_format if nchw else torch.channels_last
    model = state.model.to(memory_format=layout)
    warm_up(task, model)
    if task.hardware.on_card:
        preprocess(task, model)
    if part:
        step: Step = TimedStep(task, state, model, part, layout)
    else:
        step = NchwStep(task, state, model) if nchw else make_step(task, state, model)
    model.train()
    return state, step


def train_epoch(task: Task, state: State, step: Step) -> Iterator[None]:
    """Trains the first epoch and yields after each step."""
    for block in task.executor.blocks(timed_apart(task)):
        step.begin(block)
        for i in range(len(block)):
            step(i)
            state.step += 1
            yield
