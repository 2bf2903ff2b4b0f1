"""What a command shows: progress (`fastcifar.observers.progress`), messages among its lines, and tables.

A run ends with a table on a terminal, with one line of JSON elsewhere. Messages of the other rooms come through the
`fastcifar` logger; `route_log_to` prints them among the lines of the progress.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.data.messages import printable
from fastcifar.observers.progress import Bar, Lines, Silent, on_terminal
from fastcifar.runs.record import to_json

log = logging.getLogger("fastcifar")


def make_progress(config: Config, command: Command, num_steps: int, is_leader: bool) -> Lines:
    """A bar where stdout is a terminal, lines elsewhere, nothing in processes that do not lead."""
    if not is_leader:
        return Silent()
    progress = Bar(num_steps, says_accuracy=command.json) if on_terminal() else Lines()
    progress.config = config
    return progress


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


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= u), (1, "s"))
    return f"{seconds / unit:.2g} {name}" if seconds / unit < 99.5 else f"{seconds / unit:,.0f} {name}"


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
