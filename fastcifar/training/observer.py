"""Observers of a run: called after every step, after every epoch and at the end. They do not change the training.

One may end it: `raise Stop("good enough")`. Then the run ends as if this had been its last step: the average of the
weights where the tail has begun, the batch-norm refresh, the result and all files.

The loop calls a short list of them, in order. Progress, metrics.jsonl, checkpoints, pictures and records are
observers, each in its own file; a user's own is a class with the same three methods.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fastcifar.optim.schedule_table import ScheduleTable
from fastcifar.optim.swag import Swag
from fastcifar.runs.record import epoch_accuracy


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run. `model` holds the weights that `summary["accuracy"]` was measured with."""

    model: nn.Module
    summary: dict[str, Any]
    """Contents of summary.json."""
    history: list[dict[str, Any]]
    """A row per epoch: the lines of metrics.jsonl."""
    schedule: ScheduleTable
    swag: Swag | None = None
    """The Gaussian over the weights, whose mean `model` has; None without --swag-rank."""


class Stop(Exception):
    """Raised by an observer in `on_step` or `on_epoch`: the run ends here, normally. The message is the reason."""


class RunView(Protocol):
    """What an observer may read of a run in progress. Steps are counted from the start of the run."""

    model: nn.Module
    step: int
    history: list[dict[str, Any]]

    @property
    def num_steps(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def is_over(self) -> bool:
        """Whether this was the last step: that of the schedule, or one at which the run was stopped."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """State of the run for a checkpoint. Called by all processes together, as they share their sums."""
        ...


class Observer:
    """Does nothing. Subclasses override what they need; `on_step` must cost next to nothing."""

    def on_step(self, run: RunView) -> None:
        """Called after each optimizer step."""

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        """Called after each epoch with its line of metrics.jsonl."""

    def on_end(self, result: RunOutcome) -> None:
        """Called once, when the result is known."""


class StopAt(Observer):
    """Ends a run after the epoch whose measured accuracy (held-out with --val-split) is at least `target`."""

    def __init__(self, target: float) -> None:
        self.target = target

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        accuracy = epoch_accuracy(row)
        if accuracy is not None and accuracy >= self.target:
            raise Stop(f"accuracy {accuracy:.2%} is at least {self.target:.2%}")
