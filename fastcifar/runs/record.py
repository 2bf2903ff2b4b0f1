"""JSON files of a run folder: summary.json, metrics.jsonl and runs.jsonl, each written whole or not at all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastcifar.data.files import write_atomically
from fastcifar.runs.observers import Observer, Progress, Result

log = logging.getLogger("fastcifar")


def to_json(value: Any) -> str:
    """One line of JSON. A number that is not finite becomes null, so that every reader can parse it."""

    def clean(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {k: clean(x) for k, x in v.items()}
        return [clean(x) for x in v] if isinstance(v, (list, tuple)) else v

    return json.dumps(clean(value), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as an indented JSON file. OSError when it cannot be written; the old file is kept."""
    text = json.dumps(json.loads(to_json(value)), indent=2) + "\n"
    write_atomically(path, lambda f: f.write(text.encode()))


def write_lines(path: Path, rows: Iterable[dict[str, Any]], sync: bool = True) -> None:
    """Writes `rows` as JSON lines. OSError when they cannot be written; the old file is kept."""
    text = "".join(to_json(row) + "\n" for row in rows)
    write_atomically(path, lambda f: f.write(text.encode()), sync)


def warn_if_unwritten(path: Path, write: Callable[[], None], required: bool = False) -> None:
    """Calls `write`, which writes `path`. A full disk is a warning and training goes on, unless `required`."""
    try:
        write()
    except OSError as e:
        if required:
            raise
        log.warning("warning: %s: %s; training goes on, the file before is kept", path, e.strerror or e)


class Metrics(Observer):
    """Writes metrics.jsonl, a line per epoch.

    Without waiting for the disk: on a card an epoch takes a fifth of a second, and the checkpoint has the rows, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, run: Progress, row: dict[str, Any]) -> None:
        """Writes the whole file, so that lines which a killed process wrote after its last checkpoint vanish."""
        warn_if_unwritten(self.path, lambda: write_lines(self.path, run.history, sync=False))

    def on_end(self, result: Result) -> None:
        warn_if_unwritten(self.path, lambda: write_lines(self.path, result.history))


class Summary(Observer):
    """Writes summary.json when the run ends, with the age of the process in seconds at two moments.

    `first_step`: when the first step of this process was queued, so all of the cold start. `wall`: at the end.
    """

    def __init__(self, path: Path, age_s: Callable[[], float]) -> None:
        self.path, self.age_s = path, age_s
        self.first_step_s: float | None = None

    def on_step(self, run: Progress) -> None:
        if self.first_step_s is None:
            self.first_step_s = self.age_s()

    def on_end(self, result: Result) -> None:
        result.summary["time_s"]["first_step"] = self.first_step_s and round(self.first_step_s, 4)
        result.summary["time_s"]["wall"] = round(self.age_s(), 4)
        write_json(self.path, result.summary)
