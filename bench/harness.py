"""What the benches share: a run of a config on loaded data, results kept as they come, tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastcifar import data, machine, record, train
from fastcifar.config import Config
from fastcifar.job import prepare
from fastcifar.progress import Silent
from fastcifar.timing import utc_stamp


def facts(config: Config) -> dict[str, Any]:
    """Machine, versions and commit: the head of every result file."""
    chosen = machine.choose(config)
    return {
        "date": utc_stamp(), "device": chosen.name, "precision": chosen.precision, "compile": chosen.compile,
        "augment": chosen.augment, "scale": chosen.scale, "versions": record.versions(), **record.source_state(),
    }  # fmt: skip


def train_once(config: Config, dataset: data.Dataset) -> train.Result:
    """One silent run, nothing written."""
    job = prepare(config, dataset, machine.choose(config))
    job.progress = Silent()
    return train.train(job)


def with_seed(config: Config, seed: int) -> Config:
    """The same settings under another seed."""
    return replace(config, seed=seed, runs=1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; none if it is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def percent(stats: dict[str, Any] | None) -> str:
    """`record.interval` of accuracies as 90.12 ± 0.10 [89.87, 90.37], in percent."""
    if not stats or stats["mean"] is None:
        return "-"
    mean = f"{100 * stats['mean']:.2f}"
    if stats["std"] is None:
        return mean
    low, high = stats["ci95"]
    return f"{mean} ± {100 * stats['std']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
