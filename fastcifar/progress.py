"""What a person sees while a run goes on: a live bar with ETA on a terminal, one plain line per epoch otherwise."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Progress(Protocol):
    """Hears of every line and every step; a step must cost next to nothing."""

    def say(self, line: str) -> None: ...

    def step(self, step: int) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Plain lines on stdout."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def step(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class Silent(Lines):
    """Nothing at all: benches, and processes that do not lead."""

    def say(self, line: str) -> None:
        pass


class Bar(Lines):
    """Lines above a live bar of steps with the time that remains."""

    def __init__(self, num_steps: int) -> None:
        from rich import progress

        columns = (progress.BarColumn(), progress.TaskProgressColumn(), progress.MofNCompleteColumn(),
                   progress.TextColumn("steps, left"), progress.TimeRemainingColumn())  # fmt: skip
        self.live = progress.Progress(*columns, transient=True)
        self.task = self.live.add_task("", total=num_steps)
        self.live.start()

    def say(self, line: str) -> None:
        self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int) -> None:
        self.live.update(self.task, completed=step)

    def close(self) -> None:
        self.live.stop()


def make_progress(num_steps: int, leads: bool) -> Progress:
    """A bar where stdout is a terminal, lines elsewhere; silence in processes that do not lead."""
    if not leads:
        return Silent()
    return Bar(num_steps) if sys.stdout is not None and sys.stdout.isatty() else Lines()


def epoch_line(row: dict[str, Any], num_steps: int, steps_per_epoch: int) -> str:
    """A metrics row as a plain line."""
    value = row["accuracy_test"] if row["accuracy_test"] is not None else row.get("accuracy_val")
    shown = "" if value is None else f"  accuracy {value:7.2%}"
    return (
        f"epoch {row['epoch']:3d}/{-(-num_steps // steps_per_epoch)}  {row['phase']:5s}  lr {row['lr']:<8.4g} "
        f"momentum {row['momentum']:.3f}  loss {row['loss_train']:.4f}{shown}  {row['time_s']:7.1f} s"
    )
