"""Learning rate and momentum as a table with a row per optimizer step, made before training by torch's own schedulers.

Whether a schedule moves per step or per epoch belongs to the schedule (`RULES`), so it cannot be stepped at the wrong
interval. The step reads row t: no hidden counter, nothing to resume, drawn before a second is spent. The one exception
is ReduceLROnPlateau, which needs a metric: its rows to come are rewritten at the end of each epoch (`end_epoch`).

Sources: OneCycle with momentum cycling, Smith and Topin 2018 (arXiv:1708.07120); warm restarts, Loshchilov and Hutter
2017 (arXiv:1608.03983); cyclical, Smith 2017 (arXiv:1506.01186); constant or annealed averaging tail, Izmailov et al.
2018 (arXiv:1803.05407).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import SGD, Optimizer, lr_scheduler

from fastcifar.config import Config

Interval = Literal["step", "epoch"]


@dataclass(frozen=True)
class Rule:
    """A torch scheduler and the interval at which it is meant to be stepped.

    `build(optimizer, config, count)` gets the number of intervals (steps or epochs) that the schedule has to span.
    """

    per: Interval
    build: Callable[[Optimizer, Config, int], Any]


def own_rule(factor: Callable[[int], float], per: Interval = "epoch") -> Rule:
    """A schedule of your own: lr_peak * factor(step or epoch), through torch's LambdaLR."""
    return Rule(per, lambda optimizer, config, count: lr_scheduler.LambdaLR(optimizer, factor))


def _whole_epochs(config: Config, when: float) -> int:
    return max(1, math.floor(config.at(when) + 1e-9))


def _onecycle(optimizer: Optimizer, config: Config, count: int) -> Any:
    first_lr = config.lr_peak / config.div_factor
    final_div = config.final_div_factor
    if final_div is None:  # with a tail the cycle ends where the tail goes on: no jump
        final_div = first_lr / config.swa_lr if config.swa_start is not None and config.swa_lr > 0 else 1e4
        final_div = final_div or 1e4  # lr_peak 0: all of the cycle is 0, whatever it is divided by
    pct_start = config.pct_start
    if pct_start * count == 1:  # torch divides by zero when the rise is one step exactly (seen in 2.15)
        pct_start *= 1 + 1e-14
    return lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr_peak, total_steps=count, pct_start=pct_start,
        anneal_strategy=config.anneal_strategy, cycle_momentum=config.cycle_momentum,
        base_momentum=config.momentum_min, max_momentum=config.momentum_max,
        div_factor=config.div_factor, final_div_factor=final_div,
    )  # fmt: skip


def _multistep(optimizer: Optimizer, config: Config, count: int) -> Any:
    milestones = [_whole_epochs(config, m) for m in config.milestones]
    return lr_scheduler.MultiStepLR(optimizer, milestones=milestones, gamma=config.gamma)


def _cyclic(optimizer: Optimizer, config: Config, count: int) -> Any:
    return lr_scheduler.CyclicLR(
        optimizer, base_lr=config.base_lr, max_lr=config.lr_peak, step_size_up=max(1, count // (2 * config.cycles)),
        mode=config.cyclic_mode, gamma=config.cyclic_gamma, cycle_momentum=config.cycle_momentum,
        base_momentum=config.momentum_min, max_momentum=config.momentum_max,
    )  # fmt: skip


RULES: dict[str, Rule] = {
    "onecycle": Rule("step", _onecycle),
    "cyclic": Rule("step", _cyclic),
    "linear": Rule("step", lambda o, c, n: lr_scheduler.LinearLR(o, 1.0, c.end_factor, total_iters=n)),
    "constant": Rule("epoch", lambda o, c, n: lr_scheduler.ConstantLR(o, factor=1.0)),
    "multistep": Rule("epoch", _multistep),
    "step": Rule("epoch", lambda o, c, n: lr_scheduler.StepLR(o, _whole_epochs(c, c.step_size), gamma=c.gamma)),
    "cosine": Rule("epoch", lambda o, c, n: lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=c.eta_min)),
    "restarts": Rule("epoch", lambda o, c, n: lr_scheduler.CosineAnnealingWarmRestarts(
        o, T_0=_whole_epochs(c, c.t_0), T_mult=c.t_mult, eta_min=c.eta_min)),
    "plateau": Rule("epoch", lambda o, c, n: lr_scheduler.ReduceLROnPlateau(
        o, mode="max", factor=c.factor, patience=c.patience)),
}  # fmt: skip


def _throwaway(config: Config) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=config.lr_peak, momentum=config.momentum)


@dataclass
class Schedule:
    """Rows of (learning rate, momentum) for each step of a run.

    table: [num_steps, 2] f64 on the CPU. tail_step: first step of the SWA tail, num_steps when there is none.
    """

    table: torch.Tensor
    tail_step: int

    def end_epoch(self, next_step: int, metric: float) -> None:
        """Called after each epoch with the held-out accuracy. A table made beforehand has nothing to learn from it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs; plain containers and tensors."""
        return {"table": self.table}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`."""
        self.table = state["table"].clone()  # longer than ours where the run was extended


class PlateauSchedule(Schedule):
    """ReduceLROnPlateau: the rows of the epochs to come are rewritten when an epoch's accuracy is known."""

    def __init__(self, table: torch.Tensor, tail_step: int, config: Config, steps_per_epoch: int) -> None:
        super().__init__(table, tail_step)
        self.config, self.steps_per_epoch = config, steps_per_epoch
        self.optimizer = _throwaway(config)
        self.torch_scheduler = RULES["plateau"].build(self.optimizer, config, 0)

    def end_epoch(self, next_step: int, metric: float) -> None:
        self.torch_scheduler.step(metric)
        if next_step < self.tail_step:
            self.table[next_step : self.tail_step, 0] = self.optimizer.param_groups[0]["lr"]
            _write_tail(self.table, self.tail_step, self.config, self.steps_per_epoch)

    def state(self) -> dict[str, Any]:
        return {"table": self.table, "plateau": self.torch_scheduler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.torch_scheduler.load_state_dict(state["plateau"])
        self.optimizer.param_groups[0]["lr"] = state["plateau"]["_last_lr"][0]


def make_schedule(config: Config, steps_per_epoch: int, rule: Rule | None = None) -> Schedule:
    """The table of a whole run; `rule` overrides `config.schedule`. Rows before the tail are torch's own."""
    num_steps = count_steps(config.epochs, steps_per_epoch)
    tail_step = num_steps
    if config.swa_start is not None:
        tail_step = min(num_steps, round(config.at(config.swa_start) * steps_per_epoch))
    rule = rule or RULES[config.schedule]
    table = torch.empty(num_steps, 2, dtype=torch.float64)
    table[:tail_step] = _cycle_rows(config, rule, tail_step, steps_per_epoch)
    _write_tail(table, tail_step, config, steps_per_epoch)
    if rule is RULES["plateau"]:
        return PlateauSchedule(table, tail_step, config, steps_per_epoch)
    return Schedule(table, tail_step)


def _write_tail(table: torch.Tensor, tail_step: int, config: Config, steps_per_epoch: int) -> None:
    """Joins the averaging tail on to the cycle's last row, in place."""
    last_lr, last_momentum = table[tail_step - 1].tolist() if tail_step else (config.swa_lr, config.momentum)
    anneal_steps = round(config.at(config.swa_anneal) * steps_per_epoch)
    for t in range(tail_step, len(table)):  # k-th of the anneal steps is k / anneal_steps of the way
        way = min(1.0, (t - tail_step + 1) / anneal_steps) if anneal_steps else 1.0
        table[t, 0] = config.swa_lr if way == 1.0 else last_lr + (config.swa_lr - last_lr) * way
    table[tail_step:, 1] = last_momentum if config.swa_momentum is None else config.swa_momentum


def _cycle_rows(config: Config, rule: Rule, num_steps: int, steps_per_epoch: int) -> torch.Tensor:
    """[num_steps, 2] f64, read off a throwaway optimizer while torch's scheduler is stepped as documented."""
    if num_steps == 0:
        return torch.empty(0, 2, dtype=torch.float64)
    count = num_steps if rule.per == "step" else math.ceil(num_steps / steps_per_epoch)
    optimizer = _throwaway(config)
    group = optimizer.param_groups[0]
    scheduler = rule.build(optimizer, config, count)
    rows = []
    with warnings.catch_warnings():  # torch wants optimizer.step() in between; there is nothing to optimize here
        warnings.simplefilter("ignore")
        for i in range(count):
            rows.append((float(group["lr"]), float(group["momentum"])))
            if i + 1 < count and not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step()
    table = torch.tensor(rows, dtype=torch.float64)
    return table if rule.per == "step" else table.repeat_interleave(steps_per_epoch, 0)[:num_steps]


def count_steps(epochs: float, steps_per_epoch: int) -> int:
    """The one converter: users give epochs, schedules count optimizer steps."""
    return max(1, round(epochs * steps_per_epoch))


def extend(schedule: Schedule, config: Config, steps_per_epoch: int) -> Schedule:
    """A longer run: rows already there stay, and the tail goes on at its last row. ValueError without a tail."""
    if config.extend_epochs is None:
        return schedule
    num_steps, had = count_steps(config.extend_epochs, steps_per_epoch), len(schedule.table)
    if num_steps < had:
        raise ValueError(f"extend_epochs {config.extend_epochs:g} is shorter than the run it extends ({had} steps)")
    if schedule.tail_step >= had:
        raise ValueError("this run has no averaging tail: its schedule ended, so more epochs would train at its last "
                         "learning rate; start a new run with --epochs instead")  # fmt: skip
    schedule.table = torch.cat([schedule.table, schedule.table[-1:].expand(num_steps - had, 2)])
    return schedule
