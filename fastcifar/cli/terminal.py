"""What a person sees on a terminal: the progress of a run, and tables.

A run shows a bar with the time left on a terminal, one plain line per epoch elsewhere. Messages of the other rooms come
through the `fastcifar` logger; `route_log_to` prints them among these lines.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastcifar.runs.record import epoch_accuracy
from fastcifar.training.observer import Observer, RunOutcome, RunView

log = logging.getLogger("fastcifar")


class Lines(Observer):
    """Plain lines on stdout."""

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)

    def close(self) -> None:
        """Ends the display."""

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        self.say(epoch_line(row, -(-run.num_steps // run.steps_per_epoch)))

    def on_end(self, result: RunOutcome) -> None:
        for line in result_lines(result.summary):
            self.say(line)


class Silent(Lines):
    """Prints nothing: processes that do not lead."""

    def say(self, line: str) -> None:
        pass


class Bar(Lines):
    """Lines above a live bar of steps with the time left."""

    def __init__(self, num_steps: int) -> None:
        from rich import progress

        columns = (progress.BarColumn(), progress.TaskProgressColumn(), progress.MofNCompleteColumn(),
                   progress.TextColumn("steps, left"), progress.TimeRemainingColumn())  # fmt: skip
        self.live = progress.Progress(*columns, transient=True)
        self.task = self.live.add_task("", total=num_steps)
        self.live.start()

    def say(self, line: str) -> None:
        self.live.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_step(self, run: RunView) -> None:
        self.live.update(self.task, completed=run.step)

    def close(self) -> None:
        self.live.stop()


def make_progress(num_steps: int, is_leader: bool) -> Lines:
    """A bar where stdout is a terminal, lines elsewhere, nothing in processes that do not lead."""
    if not is_leader:
        return Silent()
    return Bar(num_steps) if sys.stdout is not None and sys.stdout.isatty() else Lines()


class Handler(logging.Handler):
    """Shows log messages as lines of a progress display."""

    def __init__(self, progress: Lines) -> None:
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.say(record.getMessage())


@contextmanager
def route_log_to(progress: Lines) -> Iterator[Lines]:
    """Shows the messages of the `fastcifar` logger as lines of `progress`, and closes it in the end."""
    handler, propagated = Handler(progress), log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield progress
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
        progress.close()


def epoch_line(row: dict[str, Any], num_epochs: int) -> str:
    """A metrics row as a plain line."""
    accuracy = epoch_accuracy(row)
    measured = "" if accuracy is None else f"  accuracy {accuracy:7.2%}"
    return (
        f"epoch {row['epoch']:3d}/{num_epochs}  {row['phase']:5s}  lr {row['lr']:<8.4g} "
        f"momentum {row['momentum']:.3f}  loss {row['loss_train']:.4f}{measured}  {row['time_s']:7.1f} s"
    )


def result_lines(summary: dict[str, Any]) -> list[str]:
    """The accuracies of a finished run, and notes on what a user may want to change."""
    raw, averaged = summary["accuracy_raw"], summary["accuracy_swa"]
    lines = []
    if averaged is not None and averaged < raw:
        lines.append(f"note: the averaged weights ({averaged:.2%}) are worse than the raw ones ({raw:.2%}): "
                     "a longer tail or a higher --swa-lr may help")  # fmt: skip
    if summary.get("stopped"):
        lines.append(f"stopped after {summary['epochs']:g} epochs: {summary['stopped']}")
    if summary["steps_skipped_fp16"]:
        lines.append(f"note: {summary['steps_skipped_fp16']} steps were skipped by fp16 overflow")
    more = f", averaged {averaged:.2%}" if averaged is not None else ""
    if summary["views"] > 1:
        more += f"; one view {summary['accuracy_one_view']:.2%}, the figure takes up to {summary['views']}"
    of = " on the built-in synthetic images, not CIFAR-10" if summary["dataset"] == "synthetic" else ""
    return [*lines, f"accuracy {summary['accuracy']:.2%} (raw {raw:.2%}{more}){of}"]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns: the first to the left, the others to the right. Control characters become `?`."""
    clean = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in clean
    )
    return "\n".join(line.rstrip() for line in lines)
