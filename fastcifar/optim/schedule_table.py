"""Learning rate, momentum and "average the weights after this step" as a table with a row per optimizer step.

Made before training, the rates by torch's schedulers. The training step reads row t: there is no hidden counter and
nothing to resume, and the whole schedule can be drawn before training starts. The one exception is ReduceLROnPlateau,
which needs a metric: it rewrites the rates to come at the end of each epoch (`plateau_table.py`). The averaging
tail follows Izmailov et al. 2018 (arXiv:1803.05407).
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from fastcifar.config.config import Config
from fastcifar.config.schedule import Span
from fastcifar.config.schedules import Plateau
from fastcifar.optim.cooling import NO_COOLING, Cooling, make_cooling
from fastcifar.optim.optimizers import UncompiledSGD


@dataclass
class ScheduleTable:
    """Learning rate and momentum of every step of a run, and after which steps the weights join the average.

    table: [num_steps, 2] f64 on the CPU. tail_step: first step of the averaging tail, num_steps without a tail.
    averages: [num_steps], the third column. cooling: how the rate of the first stage falls before its end. Both follow
    from the settings alone, so that a checkpoint is without them.
    """

    table: Tensor
    tail_step: int
    averages: list[bool] = field(default_factory=list)
    cooling: Cooling = NO_COOLING

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, step: int) -> tuple[float, float]:
        """Learning rate and momentum of a step."""
        lr, momentum = self.table[step].tolist()
        return lr, momentum

    def end_epoch(self, next_step: int, accuracy: float) -> None:
        """Called after each epoch with the held-out accuracy. A table made beforehand ignores it."""

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors for a checkpoint."""
        return {"table": self.table}

    def load(self, state: dict[str, Any]) -> None:
        """Restores `state()`. The table may be longer than before: that of an extended run."""
        self.table = state["table"].clone()


def make_schedule_table(config: Config, steps_per_epoch: int) -> ScheduleTable:
    """The table of a whole run: torch's own rows before the averaging tail, then the tail's."""
    num_steps = count_steps(config.epochs, steps_per_epoch)
    tail_step = num_steps
    if config.tail:
        tail_step = min(num_steps, round(config.epoch_of(config.tail.start) * steps_per_epoch))
    table = torch.empty(num_steps, 2, dtype=torch.float64)
    table[:tail_step] = _cycle_rows(config, tail_step, steps_per_epoch)
    write_tail(table, tail_step, config, steps_per_epoch)
    if isinstance(config.schedule, Plateau):
        from fastcifar.optim.plateau_table import PlateauTable

        rates: ScheduleTable = PlateauTable(table, tail_step, config, steps_per_epoch)
    else:
        rates = ScheduleTable(table, tail_step)
    plan_averages(rates, config, steps_per_epoch)
    rates.cooling = make_cooling(config, steps_per_epoch)
    return rates


def plan_averages(
    rates: ScheduleTable, config: Config, steps_per_epoch: int, first_step: int = 0, count: int = 0
) -> None:
    """Writes the column `averages`, in place: true every k steps of the tail, or at the ends of its epochs.

    The last step is among them where nothing else would be: of what follows `first_step`, when `count` weights have
    joined before, as in a run that was resumed and extended.
    """
    tail, num_steps = config.tail, len(rates)
    in_tail = range(1 - rates.tail_step, num_steps - rates.tail_step + 1)  # after each step
    if tail is None:
        rates.averages = num_steps * [False]
    elif tail.every_steps is not None:
        rates.averages = [k > 0 and k % tail.every_steps == 0 for k in in_tail]
        rates.averages[-1] |= in_tail[-1] > 0 and not (count or any(rates.averages[first_step:]))
    else:
        ends = ((step + 1) % steps_per_epoch == 0 or step + 1 == num_steps for step in range(num_steps))
        rates.averages = [k > 0 and end for k, end in zip(in_tail, ends, strict=True)]


def throwaway_optimizer(config: Config) -> UncompiledSGD:
    """An optimizer of one weight, for torch's schedulers to write their rates into."""
    weights = [torch.zeros(1, requires_grad=True)]
    return UncompiledSGD(weights, lr=config.schedule.peak, momentum=config.optimizer.momentum)


def write_tail(table: Tensor, tail_step: int, config: Config, steps_per_epoch: int) -> None:
    """Writes the rows of the averaging tail, which continues from the cycle's last row. In place."""
    tail = config.tail
    if tail is None:
        return
    last_lr, last_momentum = table[tail_step - 1].tolist() if tail_step else (tail.lr, config.optimizer.momentum)
    anneal_steps = round(config.epoch_of(tail.anneal) * steps_per_epoch)
    for t in range(tail_step, len(table)):  # k-th of the anneal steps is k / anneal_steps of the way
        way = min(1.0, (t - tail_step + 1) / anneal_steps) if anneal_steps else 1.0
        table[t, 0] = tail.lr if way == 1.0 else last_lr + (tail.lr - last_lr) * way
    table[tail_step:, 1] = last_momentum if tail.momentum is None else tail.momentum


def _cycle_rows(config: Config, num_steps: int, steps_per_epoch: int) -> Tensor:
    """[num_steps, 2] f64, read off a throwaway optimizer while torch's scheduler is stepped as documented."""
    if num_steps == 0:
        return torch.empty(0, 2, dtype=torch.float64)
    schedule = config.schedule
    count = num_steps if schedule.interval == "step" else math.ceil(num_steps / steps_per_epoch)
    optimizer = throwaway_optimizer(config)
    group = optimizer.param_groups[0]
    span = Span(count, config.epochs, config.tail.lr if config.tail else None)
    scheduler = schedule.torch_scheduler(optimizer, span)
    rows = []
    with warnings.catch_warnings():  # torch expects optimizer.step() in between; there is nothing to optimize here
        warnings.simplefilter("ignore")
        for i in range(count):
            rows.append((float(group["lr"]), float(group["momentum"])))
            if i + 1 < count and not isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step()
    table = torch.tensor(rows, dtype=torch.float64)
    return table if schedule.interval == "step" else table.repeat_interleave(steps_per_epoch, 0)[:num_steps]


def count_steps(epochs: float, steps_per_epoch: int) -> int:
    """Number of optimizer steps in `epochs` epochs, at least 1: users give epochs, schedules count steps."""
    return max(1, round(epochs * steps_per_epoch))
