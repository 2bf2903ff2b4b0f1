"""Writes JSON files whole or not at all, and one line of JSON that every reader can parse."""

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastcifar.files import write_atomically

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


def epoch_accuracy(row: dict[str, Any]) -> float | None:
    """The accuracy in a line of metrics.jsonl: of the test images, with --val-split of the held-out ones; or None."""
    accuracy: float | None = row["accuracy_test"]
    return row.get("accuracy_val") if accuracy is None else accuracy


def warn_if_unwritten(path: Path, write: Callable[[], None], required: bool = False) -> None:
    """Calls `write`, which writes `path`. A full disk is a warning and training goes on, unless `required`."""
    try:
        write()
    except OSError as e:
        if required:
            raise
        log.warning("warning: %s: %s; training goes on, the file before is kept", path, e.strerror or e)
