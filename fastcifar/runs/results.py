"""Reads what a run has written: config.json, metrics.jsonl and summary.json. The files may come from anywhere."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.config.config import Config
from fastcifar.runs.config_file import load_config
from fastcifar.runs.record import epoch_accuracy

MAX_BYTES = 64 << 20
LARGEST = 1e15
"""No number of a run is larger."""


@dataclass(frozen=True)
class RunResults:
    """Settings and results of one run."""

    folder: Path
    config: Config
    history: list[dict[str, Any]]
    """Rows of metrics.jsonl, at least one: epoch, loss, accuracy and whether it is of held-out images."""
    summary: dict[str, Any]
    """Checked entries of summary.json; empty for a run that has not ended."""


def read_results(folder: Path) -> RunResults:
    """What is in a run folder. ValueError of one line when a file is missing, damaged or no record of a run."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json in it; give the folder of a run")
    config = load_config(folder / "config.json")
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: is missing; the run has not ended an epoch, or is one of several seeds (--runs)")
    history = [_row(path, i, row) for i, row in enumerate(_parse(path, lines=True), 1)]
    if not history:
        raise ValueError(f"{path}: is empty; the run has not ended an epoch")
    return RunResults(folder, config, history, read_summary(folder))


def read_summary(folder: Path) -> dict[str, Any]:
    """Checked entries of a run's summary.json; empty for one that has not ended, and for a job of several seeds.

    ValueError when the file is damaged.
    """
    path = folder / "summary.json"
    if not path.exists():
        return {}
    values = _parse(path)[0]
    of_several = isinstance(values, dict) and isinstance(values.get("accuracy"), dict)
    return {} if of_several else check_summary(path, values)


def _parse(path: Path, lines: bool = False) -> list[Any]:
    """The values of a file of JSON lines, or the one value of a JSON file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in (text.split("\n") if lines else [text]) if line.strip() or not lines]
    except (OSError, ValueError, RecursionError) as e:
        reason = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
        raise ValueError(f"{path}: cannot be read ({reason})") from e


def _number(where: str, values: Any, name: str, low: float = -LARGEST, high: float = LARGEST) -> float | None:
    """The number `name` of a table; None for null and where there is none."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: is no table of names and values")
    value = values.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not low <= value <= high or math.isnan(value):
        raise ValueError(f"{where}: {name} is {repr(value)[:40]}; expected a number from {low:g} to {high:g}")
    return float(value)


def _row(path: Path, number: int, row: Any) -> dict[str, Any]:
    where = f"{path}, line {number}"
    epoch = _number(where, row, "epoch", 1)
    if epoch is None:
        raise ValueError(f"{where}: has no epoch")
    accuracies = {name: _number(where, row, name, 0, 1) for name in ("accuracy_test", "accuracy_val")}
    accuracy = epoch_accuracy(accuracies)
    return {
        "epoch": epoch, "loss": _number(where, row, "loss_train"), "accuracy": accuracy,
        "held_out": accuracy is not None and accuracies["accuracy_test"] is None,
    }  # fmt: skip


def check_summary(path: Path, values: Any) -> dict[str, Any]:
    """What a reader may need of a summary.json, flat: numbers and texts. ValueError for one that no run writes."""
    where = str(path)
    shares = ("accuracy", "accuracy_raw", "accuracy_swa", "accuracy_tta")
    numbers: dict[str, Any] = {name: _number(where, values, name, 0, 1) for name in shares}
    one_view = "accuracy_raw" if numbers["accuracy_swa"] is None else "accuracy_swa"  # of the weights that are kept
    numbers |= {"accuracy_one_view": numbers[one_view], "views": _number(where, values, "views", 1, 100)}
    numbers |= {
        name: _number(where, values, name) for name in ("loss_last", "num_steps", "epochs", "n_train", "n_test")
    }
    times = values.get("time_s") or {}
    numbers |= {f"{name}_s": _number(f"{where}, time_s", times, name) for name in ("train", "wall")}
    texts = {name: values.get(name) for name in ("dataset", "device", "precision", "commit")}
    versions = values.get("versions")
    texts["version"] = versions.get("fastcifar") if isinstance(versions, dict) else None
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{where}: {name} is {repr(text)[:40]}; expected a text")
    return {**numbers, **texts}
