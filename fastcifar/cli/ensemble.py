"""`fastcifar ensemble RUN RUN ... [--swag] [--data ...]`: what averaging the probabilities of several models adds.

Averaged are the models of several runs, samples of each run's SWAG Gaussian, or both:

    weights                 of one run   of several runs (their probabilities averaged)
    raw: of the last step   one model    deep ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474)
    averaged in the tail    SWA          Multi-SWA
    samples of the Gaussian SWAG         Multi-SWAG (Wilson & Izmailov 2020, arXiv:2002.08791)
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from fastcifar.cli.flags import UsageError, parse_quietly
from fastcifar.cli.terminal import format_table
from fastcifar.data.dataset import Dataset
from fastcifar.inference.metrics import quality
from fastcifar.inference.trained_run import (
    TrainedRun,
    load_test_images,
    log_probabilities,
    raw_model,
    read_run,
    some_of,
    swag_models,
)
from fastcifar.runs import record
from fastcifar.runs.model_file import load_swag

METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}
KINDS = {"raw": ("one model", "deep ensemble"), "swa": ("SWA", "Multi-SWA"), "swag": ("SWAG", "Multi-SWAG")}
"""Kinds of weights, with their names for one run and for several."""
SAMPLES = 30
"""Samples of each Gaussian, as in the SWAG paper."""
MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class Options:
    """Measures the mean of the probabilities of several models, beside one model."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders (or their model.safetensors): at least two, or one with --swag."""
    swag: bool = False
    """Also average samples of each run's Gaussian (runs trained with --swag-rank)."""
    swag_samples: int | None = None
    """Samples of each run's Gaussian; with --swag 30."""
    data: str | None = None
    """Data set, as --data of the training; by default the one that the runs were trained on."""
    cache_dir: str | None = None
    """Where decoded data sets are kept, as --cache-dir of the training."""
    views: bool = True
    """Average the outputs of each member for an image and its mirror."""
    out: Path | None = None
    """Folder for ensemble.json."""


def main(argv: Sequence[str]) -> int:
    """Prints a row per run and per kind of ensemble, and returns the exit code. ValueError for bad input."""
    options = parse_quietly(Options, argv, "fastcifar ensemble")
    samples = options.swag_samples if options.swag_samples is not None else SAMPLES if options.swag else 0
    if not (options.swag or options.swag_samples is not None) <= samples <= MAX_SAMPLES:
        raise UsageError(f"--swag-samples is {samples}; it must be from 1 to {MAX_SAMPLES:,}")
    if len(options.runs) < (1 if samples else 2):
        raise UsageError("an ensemble has at least two members; name several runs, or one with --swag")
    members = [read_run(where) for where in options.runs]
    check_named_once(members)
    check_members(members, options.data)
    for member in members if samples else []:  # before the work, which takes seconds for each sample
        load_swag(member.folder)
    dataset = load_test_images(members[0], options.data, options.cache_dir)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)  # before the work, so that a wrong --out is told at once
    outputs, labels = [], torch.as_tensor(dataset.y_test)
    for member in members:
        outputs.append(outputs_of(member, dataset, options.views, samples))
        member.model.cpu()
    each = [{kind: quality(log_p, labels) for kind, log_p in found.items()} for found in outputs]
    rows = compare(outputs, labels)

    if options.out:
        measured = [{"run": str(member.folder), **row} for member, row in zip(members, each, strict=True)]
        record.write_json(options.out / "ensemble.json", {
            "dataset": dataset.name, "n_test": len(labels), "views": options.views, "swag_samples": samples or None,
            "members": measured, "table": rows,
        })  # fmt: skip
    print(f"{dataset.name}: {len(labels)} test images, {'image and mirror' if options.views else 'no views'}")
    saved = [
        {"model": str(member.folder), **next(iter(row.values()))} for member, row in zip(members, each, strict=True)
    ]
    print(format_table(table_cells([*(saved if len(saved) > 1 else []), *rows])))
    return 0


def outputs_of(run: TrainedRun, dataset: Dataset, views: bool, samples: int) -> dict[str, Tensor]:
    """Log-probabilities [N, K] of the test images by kind of weights: first of the run's own model, then of what else
    there is: the raw weights where it is an average, and the mean of `samples` models of its Gaussian.
    """  # fmt: skip
    models = {"swa" if run.is_average else "raw": run.model}
    if run.is_average and (raw := raw_model(run)):
        models["raw"] = raw
    found = {kind: log_probabilities(model, dataset, views)[0] for kind, model in models.items()}
    if samples:
        print(f"{run.folder}: measuring {samples} samples", file=sys.stderr, flush=True)
        drawn = swag_models(run.folder, samples, dataset)
        found["swag"] = mean_probabilities(log_probabilities(model, dataset, views)[0] for model in drawn)
    return found


def mean_probabilities(outputs: Iterable[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities, from log-probabilities [N, K]; holds two of them at a time."""
    total, count = torch.tensor(-math.inf), 0
    for log_p in outputs:
        total, count = torch.logaddexp(total, log_p), count + 1
    return total - math.log(count)


def compare(outputs: Sequence[dict[str, Tensor]], labels: Tensor) -> list[dict[str, Any]]:
    """A row for each kind of weights that all runs have: the mean of the runs one by one, and the runs together.

    `added`: the difference to the first row. Runs that share no kind are compared by their own models.
    """
    if not set.intersection(*(set(found) for found in outputs)):
        outputs = [{"raw": next(iter(found.values()))} for found in outputs]
    rows: list[dict[str, Any]] = []
    kinds = [kind for kind in KINDS if all(kind in found for found in outputs)]
    for kind in kinds:
        single = [quality(found[kind], labels) for found in outputs]
        count = len(single)
        mean = {name: sum(row[name] for row in single) / count for name in METRICS}
        rows.append(
            {"model": KINDS[kind][0] + (f", mean of {count}" if count > 1 else ""), "kind": kind, "runs": 1, **mean}
        )
    for kind in kinds if len(outputs) > 1 else []:
        together = quality(mean_probabilities(found[kind] for found in outputs), labels)
        rows.append({"model": f"{KINDS[kind][1]} of {len(outputs)}", "kind": kind, "runs": len(outputs), **together})
    return [{**row, "added": {name: row[name] - rows[0][name] for name in METRICS}} for row in rows]


def table_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Cells of a printed table: each metric, and beside it what the row adds to one model (accuracy in points)."""
    table = [["model", *(text for name in METRICS.values() for text in (name, "added"))]]
    for i, row in enumerate(rows):
        added = row.get("added") if any("added" in before for before in rows[:i]) else None
        cells = [row["model"]]
        for name in METRICS:
            is_share = name == "accuracy"
            cells.append(f"{row[name]:.2%}" if is_share else f"{row[name]:.4f}")
            cells.append("" if added is None else f"{100 * added[name]:+z.2f}" if is_share else f"{added[name]:+z.4f}")
        table.append(cells)
    return table


def check_named_once(members: Sequence[TrainedRun]) -> None:
    """UsageError when one run is named twice, whatever its name: its mean with itself would say nothing."""
    folders = [member.folder.resolve() for member in members]
    for member, folder in zip(members, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{member.folder}: is named twice; an ensemble is of different runs")


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
