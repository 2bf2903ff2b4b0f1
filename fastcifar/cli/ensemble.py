"""`fastcifar ensemble RUN RUN ... [--data ...]`: averages the probabilities of several runs' models on test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from fastcifar.cli.options import UsageError, parse_quietly
from fastcifar.cli.table import format_table
from fastcifar.cli.trained_run import TrainedRun, load_test_images, log_probabilities, read_run, some_of
from fastcifar.runs import record
from fastcifar.training.metrics import quality

METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}


@dataclass(frozen=True)
class Options:
    """Measures the mean of the probabilities of several runs' models, beside each of them."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders (or their model.safetensors), at least two."""
    data: str | None = None
    """Data set, as --data of the training; by default the one that the runs were trained on."""
    views: bool = True
    """Average the outputs of each member for an image and its mirror."""
    out: Path | None = None
    """Folder for ensemble.json."""


def main(argv: Sequence[str]) -> int:
    """Prints a row per member, their mean and the ensemble, and returns the exit code. ValueError for bad input."""
    options = parse_quietly(Options, argv, "fastcifar ensemble")
    if len(options.runs) < 2:
        raise UsageError("an ensemble has at least two members; name several runs")
    members = [read_run(where) for where in options.runs]
    check_members(members, options.data)
    dataset = load_test_images(members[0], options.data)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)  # before the work, so that a wrong --out is told at once
    outputs = []
    for member in members:
        log_p, labels = log_probabilities(member.model, dataset, options.views)
        member.model.cpu()
        outputs.append(log_p)
    measured = [quality(log_p, labels) for log_p in outputs]
    ensemble = quality(torch.stack(outputs).logsumexp(0) - math.log(len(outputs)), labels)
    mean = {name: sum(row[name] for row in measured) / len(measured) for name in METRICS}

    if options.out:
        named = [{"run": str(member.folder), **row} for member, row in zip(members, measured, strict=True)]
        record.write_json(options.out / "ensemble.json", {
            "dataset": dataset.name, "n_test": len(labels), "views": options.views, "members": named,
            "mean": mean, "ensemble": ensemble,
        })  # fmt: skip
    print(f"{dataset.name}: {len(labels)} test images, {'image and mirror' if options.views else 'no views'}")
    rows = [*zip((str(member.folder) for member in members), measured, strict=True),
            (f"mean of the {len(members)} members", mean), ("ensemble", ensemble)]  # fmt: skip
    table = [
        [name, f"{row['accuracy']:.2%}", *(f"{row[k]:.4f}" for k in ("nll", "ece", "brier"))] for name, row in rows
    ]
    print(format_table([["model", *METRICS.values()], *table]))
    return 0


def check_members(members: Sequence[TrainedRun], data: str | None) -> None:
    """ValueError when members know other classes, or, without --data, were trained on other data sets."""
    first = members[0]
    for other in members[1:]:
        if other.model.classes != first.model.classes:
            raise ValueError(f"{first.folder} knows the classes {some_of(first.model.classes)}, but {other.folder} "
                             f"{some_of(other.model.classes)}; members need the same ones in one order")  # fmt: skip
        if data is None and (other.data, other.data_name) != (first.data, first.data_name):
            raise ValueError(f"{first.folder} and {other.folder} were trained on other data sets or subsets; give "
                             "--data to choose the test images")  # fmt: skip
