"""Trains the runs of a bench: settings x seeds, each row in runs.jsonl as soon as its run has ended.

The benches import this module; it has no command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import harness
from fastcifar.config.config import Config
from fastcifar.data.dataset import Dataset


def train(config: Config, dataset: Dataset) -> dict[str, Any]:
    """A run's summary, and its rows by epoch under `history`."""
    result = harness.train_once(config, dataset)
    return {**result.summary, "history": result.history}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a bench."""

    key: dict[str, Any]
    """What tells its row from the others of the bench; its `seed` is the seed of the run."""
    config: Config
    dataset: Dataset
    train: Callable[[Config, Dataset], dict[str, Any]] = train
    """Trains it and returns what its row has besides the key."""


def train_all(out: Path, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
    """The rows of the jobs in their order. What `out/runs.jsonl` has in the same state is not trained again."""
    rows = harness.Rows(out / "runs.jsonl")
    for job in jobs:
        config = harness.with_seed(job.config, job.key["seed"])

        def measure(job: Job = job, config: Config = config) -> dict[str, Any]:
            return job.train(config, job.dataset)

        row = rows.get_or_measure(job.key, measure, harness.state_of(config, job.dataset.digest))
        print(f"{', '.join(f'{name} {value}' for name, value in job.key.items())}: {row['accuracy']:.2%}", flush=True)
        yield row
