"""Torch's other learning-rate schedules as values, and the name of each. To add one, write a class here and name it in
`SCHEDULES`.

Sources: cosine and warm restarts, Loshchilov and Hutter 2017 (arXiv:1608.03983); cyclical, Smith 2017
(arXiv:1506.01186).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.config.schedule import Interval, MomentumCycle, OneCycle, Schedule, Span, lr_scheduler
from fastcifar.config.validation import ABOVE_0, AT_LEAST_0, FRACTION, UP_TO_1, Need, Range, setting

if TYPE_CHECKING:
    from torch.optim import Optimizer

EXP_RANGE = Need("--cyclic-mode exp_range", lambda c, _: c.schedule.mode == "exp_range")


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
    """Length of the first cycle (fraction of the run without its tail below 1, else epochs)."""
    t_mult: int = setting(2, ABOVE_0)
    """Growth of each next cycle."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.CosineAnnealingWarmRestarts:
        first = self._first_cycle(span.count) if self.t_0 < 1 else span.whole_epochs(self.t_0)
        return lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, T_0=first, T_mult=self.t_mult, eta_min=self.eta_min
        )  # fmt: skip

    def _first_cycle(self, count: int) -> int:
        """Epochs of the first cycle: the whole number next to its fraction with which the last one ends lower."""

        def share_of_the_last(first: int) -> float:
            begin, length = 0, first
            while begin + length < count:
                begin, length = begin + length, length * self.t_mult
            return (count - begin) / length

        near = self.t_0 * count
        return max(max(1, math.ceil(near - 1e-9)), max(1, math.floor(near + 1e-9)), key=share_of_the_last)


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
        rise: Any = max(1.0, span.count / (2 * self.cycles))  # torch takes a part of a step, too
        return lr_scheduler.CyclicLR(
            optimizer, base_lr=self.base_lr, max_lr=self.peak, step_size_up=rise,
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
        return lr_scheduler.LinearLR(optimizer, 1.0, self.end_factor, total_iters=max(1, span.count - 1))


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
