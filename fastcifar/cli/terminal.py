"""What a person sees on a terminal: the progress of a run, and tables.

A run shows a bar with the time left on a terminal, one plain line per epoch elsewhere. It ends with a table on a
terminal, with one line of JSON elsewhere. Messages of the other rooms come through the `fastcifar` logger;
`route_log_to` prints them among these lines.
"""

import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastcifar.augment.plan import image_size
from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.data.messages import printable
from fastcifar.runs.record import epoch_accuracy, to_json
from fastcifar.training.observer import Observer, RunOutcome, RunView

log = logging.getLogger("fastcifar")

WIDTH = 79
"""Columns of a line that a person reads: a terminal has 80 or more."""


class Lines(Observer):
    """Plain lines on stdout."""

    config: Config | None = None
    """Of the run, for the image size of each epoch; without it no size is said."""

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)

    def close(self) -> None:
        """Ends the display."""

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        size_px = image_size(self.config, row["epoch"] - 1) if self.config else None
        self.say(epoch_line(row, -(-run.num_steps // run.steps_per_epoch), size_px))

    def on_end(self, result: RunOutcome) -> None:
        for line in [*notes(result.summary), accuracy_line(result.summary)]:
            self.say(line)


class Silent(Lines):
    """Prints nothing: processes that do not lead."""

    def say(self, line: str) -> None:
        pass


class Bar(Lines):
    """Lines above a live bar of steps with the time left.

    json: whether the run ends as where stdout is no terminal, so that no table gives its accuracy.
    """

    def __init__(self, num_steps: int, json: bool = False) -> None:
        from rich import progress

        self.json = json

        columns = (progress.BarColumn(), progress.TaskProgressColumn(), progress.MofNCompleteColumn(),
                   progress.TextColumn("steps, left"), progress.TimeRemainingColumn())  # fmt: skip
        self.live = progress.Progress(*columns, transient=True)
        self.task = self.live.add_task("", total=num_steps)
        self.live.start()

    def say(self, line: str) -> None:
        self.live.console.print(fold(line), highlight=False, markup=False, soft_wrap=True)

    def on_step(self, run: RunView) -> None:
        self.live.update(self.task, completed=run.step)

    def on_end(self, result: RunOutcome) -> None:
        for line in notes(result.summary) + ([accuracy_line(result.summary)] if self.json else []):
            self.say(line)

    def close(self) -> None:
        self.live.stop()


def make_progress(config: Config, command: Command, num_steps: int, is_leader: bool) -> Lines:
    """A bar where stdout is a terminal, lines elsewhere, nothing in processes that do not lead."""
    if not is_leader:
        return Silent()
    progress = Bar(num_steps, command.json) if on_terminal() else Lines()
    progress.config = config
    return progress


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def ends_in_json(command: Command) -> bool:
    """Whether the last line is JSON: where stdout is no terminal, and with --json."""
    return command.json or not on_terminal()


def print_end(command: Command, result: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
    """Prints the end of what a command says: `result` as one line of JSON, or names and values as a table."""
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:{width}}  {printable(value)}" for name, value in rows)
    print(to_json(result) if ends_in_json(command) else table, flush=True)


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


def fold(text: str, indent: str = "  ") -> str:
    """The text with line breaks between words, so that its lines fit; a word that is longer, a path say, stays whole.

    indent: what each new line begins with.
    """
    keep: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return "\n".join(textwrap.fill(line, WIDTH, **keep) for line in text.splitlines())


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= u), (1, "s"))
    return f"{seconds / unit:.2g} {name}" if seconds / unit < 99.5 else f"{seconds / unit:,.0f} {name}"


def epoch_line(row: dict[str, Any], num_epochs: int, size_px: int | None = None) -> str:
    """A metrics row as a plain line.

    size_px: of the training images, which are smaller in the low-resolution part; the accuracy jumps when it ends.
    """
    accuracy, time_s = epoch_accuracy(row), row["time_s"]
    size = "" if size_px is None else f"  {size_px} px"
    measured = "" if accuracy is None else f"  accuracy {accuracy:7.2%}"
    return (
        f"epoch {row['epoch']:{len(str(num_epochs))}d}/{num_epochs}  {row['phase']:5s}{size}  lr {row['lr']:<8.3g} "
        f"loss {row['loss_train']:.3f}{measured}  {time_s:5.{1 if time_s < 1000 else 0}f} s"
    )


def notes(summary: dict[str, Any]) -> list[str]:
    """Lines on what a user may want to know of a finished run, or to change."""
    raw, averaged = summary["accuracy_raw"], summary["accuracy_swa"]
    lines = []
    if averaged is not None and averaged < raw:
        lines.append(f"note: the averaged weights ({averaged:.2%}) are worse than the raw ones ({raw:.2%})")
        if summary["config"].get("tail"):
            lines[-1] += ": a longer tail or a higher --swa-lr may help"
    if summary.get("stopped"):
        lines.append(f"stopped after {summary['epochs']:g} epochs: {summary['stopped']}")
    if summary["steps_skipped_fp16"]:
        lines.append(f"note: {summary['steps_skipped_fp16']} steps were skipped by fp16 overflow")
    return lines


def accuracy_line(summary: dict[str, Any]) -> str:
    """The accuracies of a finished run in one line."""
    raw, averaged = summary["accuracy_raw"], summary["accuracy_swa"]
    more = f", averaged {averaged:.2%}" if averaged is not None else ""
    if summary["views"] > 1:
        more += f"; one view {summary['accuracy_one_view']:.2%}, the figure takes up to {summary['views']}"
    of = " on the built-in synthetic images, not CIFAR-10" if summary["dataset"] == "synthetic" else ""
    return f"accuracy {summary['accuracy']:.2%} (raw {raw:.2%}{more}){of}"


def result_rows(summary: dict[str, Any], folder: object) -> list[tuple[str, str]]:
    """Names and values of the table of a finished run, or of several seeds. What the summary lacks is left out."""
    views, seconds, seeds = summary.get("views", 1), summary.get("time_s"), summary.get("n")
    kind = "one view" if views == 1 else f"up to {views} views"
    synthetic = summary.get("dataset") == "synthetic"
    entries = [
        (f"accuracy, mean of {seeds} seeds" if seeds else f"accuracy, {kind}", summary.get("accuracy"), ".2%", ""),
        ("averaged weights, one view", summary.get("accuracy_swa"), ".2%", ""),
        ("raw weights, one view", summary.get("accuracy_raw"), ".2%", ""),
        ("seeds that reach --target", summary.get("share_reached"), ".0%", ""),
        ("passes", summary.get("epochs"), "g", ""),
        ("training", seconds.get("train") if isinstance(seconds, dict) else None, ",.1f", " s"),
        ("training and evaluation", summary.get("time_to_accuracy_s"), ",.1f", " s"),
        ("work of training", summary.get("train_pflop"), ".3g", " PFLOP"),
        ("images", "built-in synthetic, not CIFAR-10" if synthetic else None, "", ""),
        ("folder", str(folder), "", ""),
    ]
    return [(name, _shown(value, spec, unit)) for name, value, spec, unit in entries if value is not None]


def _shown(value: Any, spec: str, unit: str) -> str:
    """A number, or mean and standard deviation over seeds. Anything else, from a file that was edited, as it is."""
    if isinstance(value, (int, float)):
        return f"{value:{spec}}{unit}"
    if isinstance(value, dict) and isinstance(value.get("mean"), float):
        std = value.get("std")
        more = f" (standard deviation {_shown(std, spec, unit)})" if isinstance(std, float) else ""
        return _shown(value["mean"], spec, unit) + more
    return str(value)


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
