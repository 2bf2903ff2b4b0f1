"""What a learning-rate schedule is, and OneCycle, that of the default recipe; the others are in `schedules.py`.

A schedule holds its parameters, its interval and makes torch's scheduler for them. Whether it moves once a step or once
an epoch belongs to the schedule, so it cannot be stepped at the wrong interval. A config holds one of these values;
`fastcifar.optim.schedule_table` turns it into the table that the training step reads.

Source: OneCycle with momentum cycling, Smith and Topin 2018 (arXiv:1708.07120).
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastcifar.config.held_peak import HeldPeak, steps_at_peak
from fastcifar.config.validation import ABOVE_0, AT_LEAST_0, FRACTION, Need, Part, setting

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
    hold: float = setting(0.0, FRACTION, "pct_hold")
    """Fraction of the cycle spent at the peak after the rise."""
    anneal: Literal["cos", "linear"] = setting("cos", flag="anneal_strategy")
    """Shape of both halves."""
    div_factor: float = setting(25.0, ABOVE_0)
    """Peak / first learning rate."""
    final_div_factor: float | None = setting(None, ABOVE_0)
    """First / last learning rate; None: 1e4, or the value that ends the cycle at the tail's learning rate."""

    def torch_scheduler(self, optimizer: Optimizer, span: Span) -> lr_scheduler.OneCycleLR | HeldPeak:
        first_lr = self.peak / self.div_factor
        final_div = self.final_div_factor
        if final_div is None and span.tail_lr:
            final_div = first_lr / span.tail_lr  # 0 where the peak is 0: then any factor does
        rising, held = steps_at_peak(self.rise, self.hold, span.count)
        count = span.count - held
        rise = rising / count if held else self.rise
        if rise * count == 1:  # torch divides by zero when the rise is one step exactly (seen in 2.15)
            rise *= 1 + 1e-14
        onecycle = lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.peak, total_steps=count, pct_start=rise, anneal_strategy=self.anneal,
            cycle_momentum=self.cycle_momentum, base_momentum=self.momentum_min, max_momentum=self.momentum_max,
            div_factor=self.div_factor, final_div_factor=final_div or 1e4,
        )  # fmt: skip
        return HeldPeak(onecycle, rising, held) if held else onecycle
