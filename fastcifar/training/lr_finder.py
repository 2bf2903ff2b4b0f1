"""Learning-rate range test: steps with a rate that grows exponentially, and the rate up to which the loss falls.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186, section 3.3).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from fastcifar.augment.plan import image_size
from fastcifar.optim.optimizers import set_row
from fastcifar.training.start import initial_state, preprocess
from fastcifar.training.step import Step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task

SMOOTHING = 0.9
"""Weight of the past in the running mean of the loss."""
DIVERGED = 4.0
"""The test stops when the running mean is this many times its smallest value ..."""
STANDARD_ERRORS = 8.0
"""... or so many standard errors above it. With batch norm and Muon a useless network ends at the loss of chance.

On 40 series of 200 losses that were noise alone, five standard errors stopped 7, seven none.
"""
SKIPPED_STEPS = 10
"""First steps that are no peak and no reason to stop: the running mean has seen too few losses."""
LEAST_STEPS = 20
SHARE_OF_LOWEST = 0.5
"""The suggestion relative to the rate at which the smoothed loss is smallest. fastai takes the rate of the steepest
descent. With batch norm that is where a network begins to learn, 5 to 700 times lower."""


@dataclass(frozen=True)
class RangeTest:
    """Outcome of a test. One entry per step that was taken."""

    lr: list[float]
    """Learning rate as the schedule gives it, before the scales of the parameter groups."""
    loss: list[float]
    smoothed: list[float]
    momentum: float
    stopped: bool
    """Whether the loss diverged before the largest rate."""


def growing_rates(first: float, last: float, steps: int) -> list[float]:
    """`steps` rates from `first` to `last`, each the same multiple of the one before. ValueError for a wrong range."""
    if not (0 < first < last < math.inf):
        raise ValueError(f"the learning rate grows from {first:g} to {last:g}; it must begin above 0 and end higher")
    if not LEAST_STEPS <= steps <= 100_000:
        raise ValueError(f"{steps} steps; the test takes from {LEAST_STEPS} to 100,000")
    return [first * (last / first) ** (i / (steps - 1)) for i in range(steps)]


def smooth(losses: list[float]) -> list[float]:
    """Exponential running mean without the bias of its start at 0."""
    means, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**i))
    return means


def smooth_both_ways(losses: list[float]) -> list[float]:
    """The running mean from the front, and that of it from the back: so it does not lag behind the losses."""
    return smooth(smooth(losses)[::-1])[::-1]


def suggest(lr: list[float], loss: list[float], smoothed: list[float]) -> float | None:
    """Half of the rate at which the smoothed loss is smallest; None where the loss does not fall below its first value,
    that of the untrained network, or only in the first steps.
    """
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    falls = lowest >= SKIPPED_STEPS and smoothed[lowest] < loss[0]
    return SHARE_OF_LOWEST * lr[lowest] if falls else None


def range_test(task: Task, rates: list[float]) -> RangeTest:
    """Trains a new model with the rates, one step each, on augmented batches as in training.

    The optimizers, their groups' scales, the batches and the loss are those of a run; the momentum is that of the
    schedule where its learning rate is largest, as the result is meant for that point. Nothing is written.
    """
    state = initial_state(task, Stopwatch(task.hardware.device))
    if task.hardware.on_card:
        preprocess(task, state.model)
    _, momentum = state.rates[int(state.rates.table[:, 0].argmax())]
    step = Step(task, state, state.model)
    state.model.train()
    losses: list[float] = []
    divergence, stopped = Divergence(), False
    for lr, (x, y) in zip(rates, _batches(task), strict=False):
        set_row(state.optimizers, lr, momentum)
        state.loss_sum.zero_()
        step.update(x, y)
        losses.append(state.loss_sum.item())
        if stopped := divergence.after(losses[-1]):
            break
    finite = [loss for loss in losses if math.isfinite(loss)]
    return RangeTest(rates[: len(finite)], finite, smooth_both_ways(finite), momentum, stopped)


@dataclass
class Divergence:
    """Says after each loss whether it is not finite, or the running mean is far above its smallest value."""

    count: int = 0
    mean: float = 0.0
    """Running mean as `smooth` has it; `least` is its smallest value, after `least_at` losses."""
    least: float = math.inf
    least_at: int = 0
    squares: float = 0.0
    """Sum of the squared distances of each loss from the mean before it, and that sum at `least_at`."""
    squares_at_least: float = 0.0

    def after(self, loss: float) -> bool:
        """Whether the test has diverged with this next loss."""
        if not math.isfinite(loss):
            return True
        if self.count:
            self.squares += (loss - self.mean) ** 2
        weight = 1 - SMOOTHING**self.count  # of the past, which starts at 0
        self.count += 1
        self.mean = (SMOOTHING * self.mean * weight + (1 - SMOOTHING) * loss) / (1 - SMOOTHING**self.count)
        if self.mean < self.least:
            self.least, self.least_at, self.squares_at_least = self.mean, self.count, self.squares
        if self.count <= SKIPPED_STEPS:
            return False
        if self.mean > DIVERGED * self.least:
            return True
        distances = self.least_at - 1
        if distances < SKIPPED_STEPS:
            return False
        variance = self.squares_at_least / distances
        error = math.sqrt(variance * (1 - SMOOTHING) / (1 + SMOOTHING))  # of an exponential mean of independent values
        return self.mean > self.least + STANDARD_ERRORS * error


def _batches(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch after the other, without an end: x [B, 3, S, S], y [B]."""
    for epoch in itertools.count():
        yield from task.executor.epoch(task.plan(epoch), image_size(task.config, epoch))
