"""Everything that changes while training (`State`), and its form in a checkpoint.

Shapes: steps and epochs count from 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcifar.optim.averaging import RunningMean
from fastcifar.optim.schedule_table import ScheduleTable
from fastcifar.training.parts import give_back, is_from_python, kept_by
from fastcifar.training.processes import World, sum_over_processes
from fastcifar.training.stopwatch import Stopwatch

FIRST_LOSS_SCALE = 2.0**12
"""First loss scale in fp16. It only falls, by halves, so it tells the number of skipped steps."""


class Diverged(RuntimeError):
    """Raised when the loss is not finite, or the accuracy is at chance after an epoch. The message is a diagnosis."""


@dataclass
class State:
    """Everything that changes while training, and so everything that a checkpoint holds."""

    model: nn.Module
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler
    rates: ScheduleTable
    """Learning rate and momentum of every step, and after which steps the weights join the average."""
    average: RunningMean
    loss_sum: Tensor
    """Sum of the loss over the steps of this epoch so far: a scalar on the device."""
    stopwatch: Stopwatch
    steps_per_epoch: int
    world: World
    step: int = 0
    """Steps taken."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row per epoch: the lines of metrics.jsonl."""
    stopped: str | None = None
    """Why an observer has ended the run; None when none has."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return len(self.rates)

    @property
    def is_over(self) -> bool:
        """Whether the last step is taken: that of the schedule, or one at which an observer has ended the run."""
        return self.step == self.num_steps or self.stopped is not None

    def snapshot(self) -> dict[str, Any]:
        """The state for a checkpoint, with the seconds spent. Raises Diverged when the weights are not finite.

        All processes must call it together: it averages their loss sums, so that any number of processes can continue.
        """
        # In place, as a captured step adds to this very tensor.
        self.loss_sum.copy_(sum_over_processes(self.loss_sum, self.world) / self.world.size)
        if not self.is_finite():
            lr, _ = self.rates[self.step - 1]
            raise Diverged(f"weights or loss are not finite at step {self.step}, learning rate {lr:g}: lower --lr-peak")
        return {**self.tree(), "time_s": {phase: self.stopwatch.seconds(phase) for phase in ("train", "eval")}}

    def tree(self) -> dict[str, Any]:
        """Plain containers and tensors. Learning rate and momentum are stored in the schedule's table only."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [
                kept_by(o) if is_from_python(o) else [_momentum(o, p) for p in weights_of(o)] for o in self.optimizers
            ],
            "loss_scale": float(self.scaler.get_scale()),
            "schedule": self.rates.state(),
            "mean": self.average.state(),
            "loss_sum": self.loss_sum,
            "step": self.step,
            "history": self.history,
        }

    @torch.no_grad()
    def load(self, tree: dict[str, Any]) -> None:
        """Restores `tree()`: one of this run, as `fastcifar.training.resume` checks."""
        self.model.load_state_dict(tree["model"])
        for optimizer, momenta in zip(self.optimizers, tree["optimizers"], strict=True):
            if is_from_python(optimizer):
                give_back(optimizer, momenta)
                continue
            for p, momentum in zip(weights_of(optimizer), momenta, strict=True):
                optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(momentum)
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": tree["loss_scale"]})
        self.rates.load(tree["schedule"])
        self.average.load(tree["mean"])
        self.loss_sum.copy_(tree["loss_sum"])
        self.step, self.history = tree["step"], tree["history"]

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restores weights, statistics, momenta, sums and loss scale when the block ends, also by an error.

        Clears gradients. Tensors are copied back in place, on their device and without a wait, because a captured graph
        reads these addresses.
        """
        momenta = [kept["momentum_buffer"] for o in self.optimizers for kept in o.state.values()]
        tensors = [*self.model.state_dict().values(), *self.average.tensors().values(), *momenta, self.loss_sum]
        before, count, training = [t.clone() for t in tensors], self.average.count, self.model.training
        scale = self.scaler.scale(torch.ones_like(self.loss_sum))  # also puts it on the device: 1 where it is disabled
        try:
            yield
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.train(training)
            self.average.count = count
            self.scaler.update(scale)  # also drops what it noted of an interrupted step
            for optimizer in self.optimizers:
                # Drops the scale that an interrupted step left on the optimizer; the next would multiply by it.
                vars(optimizer).pop("grad_scale", None)
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)

    def is_finite(self) -> bool:
        """Whether weights and loss are finite. Waits for the device."""
        norms = torch._foreach_norm(list(self.model.parameters()))
        return bool(torch.stack([*norms, self.loss_sum]).sum().isfinite())


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _momentum(optimizer: Optimizer, p: Tensor) -> Tensor:
    """The momentum of a weight; zero before the first step, which torch treats as none."""
    momentum = optimizer.state.get(p, {}).get("momentum_buffer")
    return torch.zeros_like(p) if momentum is None else momentum
