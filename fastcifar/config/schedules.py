"""Learning-rate schedules as values: each holds its parameters, its interval and makes torch's scheduler for them.

Whether a schedule moves once a step or once an epoch belongs to the schedule, so it cannot be stepped at the wrong
interval. A config holds one of these values; `fastcifar.optim.schedule_table` turns it into the table that the
training step reads. To add a schedule, write one class here and name it in `SCHEDULES`.

Sources: OneCycle with momentum cycling, Smith and Topin 2018 (arXiv:1708.07120); cosine and warm restarts, Loshchilov
and Hutter 2017 (arXiv:1608.03983); cyclical, Smith 2017 (arXiv:1506.01186).
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.config.validation import ABOVE_0, AT_LEAST_0, FRACTION, UP_TO_1, Need, Part, Range, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer, lr_scheduler
else:

    class _LrScheduler:
        """torch.optim.lr_scheduler, imported at its first use: to read flags must not take seconds."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("torch.optim.lr_scheduler"), name)

    lr_scheduler = _LrScheduler()

Interval = Literal["step", "epoch"]
CYCLES_MOMENTUM = Need(
    "a schedule that cycles the momentum (--cycle-momentum)", lambda c, _: c.schedule.cycles_momentum
)
EXP_RANGE = Need("--cyclic-mode exp_range", lambda c, _: c.schedule.mode == "exp_range")


@dataclass(frozen=True)
class Span:
    """The part of a run that a schedule covers: all of it, or all before the averaging tail."""

    count: int
    """Number of intervals (steps or epochs, see `Schedule.interval`)."""
    run_epochs: float
    """Epochs of the whole run, the averaging tail included."""
    tail_lr: float | None = None
    """Learning rate of the averaging tail that follows; None without a tail."""

    def whole_epochs(self, when: float) -> int:
        """A point of the run (a fraction below 1, else an epoch) as a number of whole epochs, at least 1."""
        return max(1, math.floor(epoch_of(when, self.run_epochs) + 1e-9))


def epoch_of(when: float, run_epochs: float) -> float:
    """Epoch of a point that is given as a fraction of the run (below 1) or as an epoch (from 1 up)."""
    return when * run_epochs if when < 1 else when


@dataclass(frozen=True, kw_only=True)
class Schedule(Part, ABC):
    """What all schedules share. Raises ValueError, naming the flag, when a value makes no sense."""

    name: ClassVar[str]
    interval: ClassVar[Interval]
    peak: float = setting(within=AT_LEAST_0, flag="lr_peak")
    """Largest learning rate; the first one in schedules that start at their largest."""

    @abstractmethod
    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> Any:
        """torch's scheduler over `span`, for an optimizer that was made with `peak` as its learning rate."""

    @property
    def cycles_momentum(self) -> bool:
        """Whether the schedule sets the momentum, too."""
        return False


@dataclass(frozen=True, kw_only=True)
class MomentumCycle(Schedule):
    """A schedule whose momentum moves against the learning rate."""

    momentum_max: float = setting(0.95, FRACTION, needs=CYCLES_MOMENTUM)
    """Momentum at the smallest learning rate."""
    momentum_min: float = setting(0.85, FRACTION, needs=CYCLES_MOMENTUM)
    """Momentum at the largest learning rate."""
    cycle_momentum: bool = True
    """Cycle the momentum against the learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum_min > self.momentum_max:
            raise ValueError(f"momentum_min {self.momentum_min} is above momentum_max {self.momentum_max}")

    @property
    def cycles_momentum(self) -> bool:
        return self.cycle_momentum


@dataclass(frozen=True, kw_only=True)
class OneCycle(MomentumCycle):
    """One rise to the peak and one fall; the momentum moves against the learning rate."""

    name = "onecycle"
    interval = "step"
    rise: float = setting(0.3, FRACTION, "pct_start")
    """Fraction of the cycle spent rising."""
    anneal: Literal["cos", "linear"] = setting("cos", flag="anneal_strategy")
    """Shape of both halves."""
    div_factor: float = setting(25.0, ABOVE_0)
    """Peak / first learning rate."""
    final_div_factor: float | None = setting(None, ABOVE_0)
    """First / last learning rate; None: 1e4, or the value that ends the cycle at the tail's learning rate."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.OneCycleLR:
        first_lr = self.peak / self.div_factor
        final_div = self.final_div_factor
        if final_div is None and span.tail_lr:
            final_div = first_lr / span.tail_lr  # 0 where the peak is 0: then any factor does
        rise = self.rise
        if rise * span.count == 1:  # torch divides by zero when the rise is one step exactly (seen in 2.15)
            rise *= 1 + 1e-14
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.peak, total_steps=span.count, pct_start=rise, anneal_strategy=self.anneal,
            cycle_momentum=self.cycle_momentum, base_momentum=self.momentum_min, max_momentum=self.momentum_max,
            div_factor=self.div_factor, final_div_factor=final_div or 1e4,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The learning rate drops at given points."""

    name = "multistep"
    interval = "epoch"
    milestones: tuple[float, ...] = (0.5, 0.8)
    """Where the learning rate drops (fractions below 1, else epochs)."""
    gamma: float = setting(0.1, UP_TO_1)
    """Factor of each drop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(self.milestones) or any(m <= 0 for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must be positive and in increasing order")

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.MultiStepLR:
        epochs = [span.whole_epochs(milestone) for milestone in self.milestones]
        return lr_scheduler.MultiStepLR(optimizer, milestones=epochs, gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """The learning rate drops at equal distances."""

    name = "step"
    interval = "epoch"
    step_size: float = setting(0.3, ABOVE_0)
    """Distance between drops (fraction below 1, else epochs)."""
    gamma: float = setting(0.1, UP_TO_1)
    """Factor of each drop."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.StepLR:
        return lr_scheduler.StepLR(optimizer, span.whole_epochs(self.step_size), gamma=self.gamma)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak to the smallest learning rate."""

    name = "cosine"
    interval = "epoch"
    eta_min: float = setting(0.0, AT_LEAST_0)
    """Smallest learning rate."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.CosineAnnealingLR:
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=span.count, eta_min=self.eta_min)


@dataclass(frozen=True, kw_only=True)
class WarmRestarts(Schedule):
    """Cosines that start again at the peak, each longer than the one before."""

    name = "restarts"
    interval = "epoch"
    eta_min: float = setting(0.0, AT_LEAST_0)
    """Smallest learning rate."""
    t_0: float = setting(1 / 3, ABOVE_0)
    """Length of the first cycle (fraction below 1, else epochs)."""
    t_mult: int = setting(2, ABOVE_0)
    """Growth of each next cycle."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.CosineAnnealingWarmRestarts:
        first = span.whole_epochs(self.t_0)
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=first, T_mult=self.t_mult, eta_min=self.eta_min
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cyclic(MomentumCycle):
    """Triangles between the smallest learning rate and the peak; the momentum moves against the learning rate."""

    name = "cyclic"
    interval = "step"
    base_lr: float = setting(0.001, AT_LEAST_0)
    """Smallest learning rate."""
    cycles: int = setting(5, ABOVE_0)
    """Triangles over the run, equal in length."""
    mode: Literal["triangular", "triangular2", "exp_range"] = setting("triangular", flag="cyclic_mode")
    """How the peaks change."""
    gamma: float = setting(0.9999, UP_TO_1, "cyclic_gamma", EXP_RANGE)
    """exp_range: the factor per step."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.CyclicLR:
        return lr_scheduler.CyclicLR(
            optimizer, base_lr=self.base_lr, max_lr=self.peak, step_size_up=max(1, span.count // (2 * self.cycles)),
            mode=self.mode, gamma=self.gamma, cycle_momentum=self.cycle_momentum, base_momentum=self.momentum_min,
            max_momentum=self.momentum_max,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """The learning rate drops when the held-out accuracy has not risen for some epochs."""

    name = "plateau"
    interval = "epoch"
    factor: float = setting(0.1, FRACTION)
    """Factor of each drop."""
    patience: int = setting(3, AT_LEAST_0)
    """Epochs without improvement before a drop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == 0:
            raise ValueError("factor is 0; it must be in (0, 1)")

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.ReduceLROnPlateau:
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=self.factor, patience=self.patience)


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same learning rate all along."""

    name = "constant"
    interval = "epoch"

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.ConstantLR:
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line from the peak to the last learning rate."""

    name = "linear"
    interval = "step"
    end_factor: float = setting(0.0, AT_LEAST_0)
    """Last learning rate / peak."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.LinearLR:
        return lr_scheduler.LinearLR(optimizer, 1.0, self.end_factor, total_iters=span.count)


@dataclass(frozen=True, kw_only=True)
class PerStep(Schedule):
    """Your own schedule: peak * factor(step), by torch's LambdaLR. From Python only."""

    name = "per-step"
    interval: ClassVar[Interval] = "step"
    factor: Callable[[int], float] = setting(within=Range("a function of a number", callable))
    """Learning rate / peak at a step (from 0)."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.LambdaLR:
        return lr_scheduler.LambdaLR(optimizer, self.factor)


@dataclass(frozen=True, kw_only=True)
class PerEpoch(PerStep):
    """As `PerStep`: peak * factor(epoch)."""

    name = "per-epoch"
    interval = "epoch"


SCHEDULES: dict[str, type[Schedule]] = {
    schedule.name: schedule
    for schedule in (OneCycle, MultiStep, Step, Cosine, WarmRestarts, Cyclic, Plateau, Constant, Linear)
}
"""Schedules by the name that `--schedule` takes."""
