"""Saves checkpoints while a run trains, and ends it after a signal once its state is saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcifar.config.config import Config
from fastcifar.runs import checkpoint
from fastcifar.runs.record import warn_if_unwritten
from fastcifar.training.observer import Observer, RunView

CHECKPOINT_AFTER_S = 30.0
"""Seconds of training between two checkpoints, unless --checkpoint-every says how many epochs: a run of seconds, such
as speedrun94 on a card, does not wait for 31 MB on the disk after each of its epochs."""


class Interrupted(RuntimeError):
    """Raised after a signal, once the current step has been saved. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.number = number


class Checkpoints(Observer):
    """Writes checkpoint.pt at the end of epochs, at the end of training and before an interruption.

    path: None in a process that does not write; it still takes part in the snapshot. stop(step) gives the number of a
    signal that ends the run, or None. agree(value) gives the largest value over all processes.
    """

    def __init__(
        self,
        path: Path | None,
        config: Config,
        digest: str,
        stop: Callable[[int], int | None] = lambda step: None,
        agree: Callable[[int], int | None] = lambda value: value,
    ) -> None:
        self.path, self.config, self.digest, self.stop, self.agree = path, config, digest, stop, agree
        self.saved_at_s = 0.0

    def on_step(self, run: RunView) -> None:
        at_end_of_epoch = run.step % run.steps_per_epoch == 0 or run.is_over
        if not at_end_of_epoch and (signal := self.stop(run.step)):
            self._save(run, required=True)
            raise Interrupted(signal)

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        signal = self.stop(0)
        if signal or run.is_over or self.agree(self._is_due(row)):
            self._save(run, required=bool(signal))
            self.saved_at_s = row["time_s"]
        if signal:
            raise Interrupted(signal)

    def _is_due(self, row: dict[str, Any]) -> bool:
        """Every so many epochs as configured, else once CHECKPOINT_AFTER_S of training would be lost."""
        every = self.config.run.checkpoint_every
        if every is None:
            return row["time_s"] - self.saved_at_s >= CHECKPOINT_AFTER_S
        return every > 0 and row["epoch"] % every == 0

    def _save(self, run: RunView, required: bool) -> None:
        """A full disk does not end the training, unless the run ends here and the file is `required`."""
        tree, path = run.snapshot(), self.path
        if path:
            warn_if_unwritten(path, lambda: checkpoint.save(path, self.config, self.digest, tree), required)
