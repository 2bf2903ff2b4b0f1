"""What do averaged weights, a Gaussian over them, and several seeds add to one model?

    python train_fast.py --recipe swa30 --runs 10 --keep-all --swag-rank 20 --out RUNS
    python -m bench.ensembles --runs-folder RUNS --members 5 --samples 20

Measures every run below the folder once: its raw weights, its averaged weights, and samples of its Gaussian. The
log-probabilities are kept in `members/`, so that an interrupted bench continues and ensembles with common members
share them. Then all ensembles of so many members are measured.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import load_file, save
from torch import Tensor

import fastcifar
from bench import harness
from fastcifar.cli.ensemble import KINDS, METRICS, check_members, mean_probabilities, outputs_of
from fastcifar.config.config import Config, Machine
from fastcifar.data.dataset import Dataset
from fastcifar.files import write_atomically
from fastcifar.inference.metrics import quality
from fastcifar.inference.trained_run import TrainedRun, load_test_images, read_run
from fastcifar.runs import intervals, record
from fastcifar.training.hardware import resolve
from fastcifar.training.step import autocast

MAX_ENSEMBLES = 2_000
Row = dict[str, float]
Outputs = tuple[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    runs_folder: Path | None = None
    """Folder of finished runs that differ in their seed only, trained with --swag-rank."""
    members: int = 5
    """Runs of an ensemble."""
    samples: int = 20
    """Samples of each run's Gaussian."""
    data: str | None = None
    """As --data of the training; by default the images that the runs were trained on."""
    views: bool = True
    """Average the outputs for each image and its mirror."""
    quick: bool = False
    """Ensembles of 2 with 2 samples, of 3 tiny runs that it trains where no folder is given: shows that it works."""
    out: Path = Path("bench-results/ensembles")
    """Folder of runs.jsonl, ensembles.jsonl, table.md, table.json and members/."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.ensembles")
    if options.quick:
        options = replace(options, members=2, samples=2)
    try:
        runs = read_runs(options)
        dataset = load_test_images(runs[0], options.data, cache_dir=None)
        measured: list[Outputs] = []
        with harness.interruptible() as interruption:
            for run in runs:
                measured.append(measure(run, dataset, options))  # noqa: PERF401 (an interruption keeps the rest)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if len(measured) >= options.members:
        write_results(runs[: len(measured)], measured, dataset, options)
    return interruption.code


def read_runs(options: Options) -> list[TrainedRun]:
    """The runs with a Gaussian below the folder, in the order of their names. --quick trains some without a folder."""
    folder = options.runs_folder
    if folder is None:
        if not options.quick:
            raise ValueError("--runs-folder is missing: a folder of runs that were trained with --swag-rank")
        folder = options.out / "runs"
        for seed in range(3):
            if not (folder / f"seed{seed}").exists():
                fastcifar.train("swa30", data="synthetic", subset=250, epochs=2, batch_size=50, scale="small",
                                seed=seed, swa_every=1, swag_rank=3, out=folder / f"seed{seed}")  # fmt: skip
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/swag.safetensors"))]
    if len(runs) < options.members or options.members < 2:
        raise ValueError(f"{folder}: has {len(runs)} runs with swag.safetensors; --members is {options.members}, from "
                         "2 to their number")  # fmt: skip
    if (count := math.comb(len(runs), options.members)) > MAX_ENSEMBLES:
        raise ValueError(f"{folder}: {len(runs)} runs make {count:,} ensembles of {options.members}; use fewer runs")
    check_members(runs, options.data)
    return runs


def machine_config(run: TrainedRun) -> Config:
    """The settings of the run, on this machine. ValueError without a config.json."""
    if run.config is None:
        raise ValueError(f"{run.folder}: no config.json in it; its settings are needed to draw samples")
    return replace(run.config, machine=Machine())


def measure(run: TrainedRun, dataset: Dataset, options: Options) -> Outputs:
    """Log-probabilities [N, K] by kind of weights, from `members/` where they were measured before, and their state."""
    files = [(run.folder / name).read_bytes() for name in ("model.safetensors", "swag.safetensors")]
    digest, config = hashlib.sha256(b"".join(files)).hexdigest(), machine_config(run)
    state = harness.state_of(config, digest, dataset.digest, options.samples, options.views)
    path = options.out / "members" / f"{run.folder.name}-{state}.safetensors"
    if not path.exists():
        with autocast(resolve(config)[1]):
            found = outputs_of(run, dataset, options.views, options.samples)
        run.model.cpu()
        content = save({kind: log_p.float().contiguous() for kind, log_p in found.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda f: f.write(content))
        print(f"{run.folder.name}: measured", flush=True)
    return state, load_file(path)


def write_results(runs: list[TrainedRun], measured: list[Outputs], dataset: Dataset, options: Options) -> None:
    """Measures the runs and all their ensembles, and writes runs.jsonl, ensembles.jsonl and the table."""
    labels, names = torch.as_tensor(dataset.y_test), [run.folder.name for run in runs]
    kinds = [kind for kind in KINDS if all(kind in outputs for _, outputs in measured)]
    qualities: dict[tuple[str, tuple[int, ...]], Row] = {}
    for size in (1, options.members):
        for kind, subset in itertools.product(kinds, itertools.combinations(range(len(runs)), size)):
            qualities[kind, subset] = quality(mean_probabilities(measured[i][1][kind] for i in subset), labels)
    record.write_lines(options.out / "runs.jsonl", [
        {"run": name, "state": state, **{kind: qualities[kind, (i,)] for kind in kinds}}
        for i, (name, (state, _)) in enumerate(zip(names, measured, strict=True))
    ])  # fmt: skip
    record.write_lines(options.out / "ensembles.jsonl", [
        {"kind": kind, "runs": [names[i] for i in subset], **row}
        for (kind, subset), row in qualities.items() if len(subset) > 1
    ])  # fmt: skip
    write_table(summarize(qualities, len(runs)), dataset, machine_config(runs[0]), options, len(runs))


def summarize(measured: dict[tuple[str, tuple[int, ...]], Row], num_runs: int) -> list[dict[str, Any]]:
    """A row per kind and number of members: mean over all ensembles, 95% interval, and the same of what it adds.

    Ensembles share members, so they are no independent repeats: the runs are. The mean over all subsets of m of M runs
    is a U-statistic, and the jackknife over the runs gives its interval: pseudo-value i is M times the mean over all
    subsets less M - 1 times the mean over those without run i. For m = 1 these are the values of the runs themselves.
    """
    rows: list[dict[str, Any]] = []
    pseudo: list[dict[str, list[float]]] = []
    for size in sorted({len(subset) for _, subset in measured}):
        for kind in dict.fromkeys(kind for kind, _ in measured):
            values = {s: row for (k, s), row in measured.items() if k == kind and len(s) == size}
            name = KINDS[kind][0] if size == 1 else f"{KINDS[kind][1]} of {size}"
            pseudo.append({metric: pseudo_values({s: row[metric] for s, row in values.items()}, num_runs)
                           for metric in METRICS})  # fmt: skip
            rows.append({"model": name, "kind": kind, "members": size, "ensembles": len(values)})
    for row, own in zip(rows, pseudo, strict=True):
        row |= {metric: intervals.interval(own[metric]) for metric in METRICS}
        row["added"] = {metric: intervals.interval(differences(own[metric], pseudo[0][metric])) for metric in METRICS}
    return rows


def differences(values: list[float], first: list[float]) -> list[float]:
    """By run; of the means where there is one value, of an ensemble of all runs."""
    if len(values) < len(first):
        return [values[0] - math.fsum(first) / len(first)]
    return [value - other for value, other in zip(values, first, strict=True)]


def pseudo_values(values: dict[tuple[int, ...], float], num_runs: int) -> list[float]:
    """The jackknife's pseudo-value of each run; the mean alone where every ensemble has all runs."""
    mean = math.fsum(values.values()) / len(values)
    if len(values) == 1:
        return [mean]
    without = [[v for subset, v in values.items() if i not in subset] for i in range(num_runs)]
    return [num_runs * mean - (num_runs - 1) * math.fsum(left) / len(left) for left in without]


def write_table(rows: list[dict[str, Any]], dataset: Dataset, config: Config, options: Options, num_runs: int) -> None:
    """Writes table.json and table.md, and prints the latter."""
    head = {**harness.describe_environment(config), "dataset": dataset.name, "n_test": len(dataset.y_test),
            "recipe": config.run.recipe, "epochs": config.epochs, "swag_rank": config.tail and config.tail.swag_rank,
            "runs": num_runs, "samples": options.samples, "views": options.views}  # fmt: skip
    record.write_json(options.out / "table.json", {**head, "table": rows})

    def show(metric: str, stats: dict[str, Any], sign: str = "") -> str:
        scale, digits = (100, 2) if metric == "accuracy" else (1, 4)
        text = f"{scale * stats['mean']:{sign}z.{digits}f}"
        low_high = stats["ci95"] and ", ".join(f"{scale * v:{sign}z.{digits}f}" for v in stats["ci95"])
        return f"{text} [{low_high}]" if low_high else text

    names = ("accuracy %", *list(METRICS.values())[1:])
    table = [[row["model"], row["ensembles"], *(show(m, row[m]) for m in METRICS)] for row in rows]
    added = [[row["model"], *(show(m, row["added"][m], "+") for m in METRICS)] for row in rows[1:]]
    views = "image and mirror" if options.views else "no views"
    text = (
        f"{dataset.name}, {len(dataset.y_test):,} test images, {views}; {num_runs} runs of {config.run.recipe}, "
        f"{config.epochs:g} epochs, scale {head['scale']}; {options.samples} samples of each Gaussian; "
        f"{head['device']}, {head['precision']}.\n\n"
        + harness.markdown_table(("model", "n", *names), table)
        + f"\nAdded to {rows[0]['model']}:\n\n"
        + harness.markdown_table(("model", *names), added)
        + "\nMean over n models or ensembles: all that the runs make, so that they share members. In brackets the 95% "
        "interval of\nthis mean over the seeds, by the jackknife over the runs (Student's t); the test images are "
        "fixed.\n"
    )
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
