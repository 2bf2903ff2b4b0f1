"""Which schedule is best at equal epochs? Trains recipes with the same seeds.

    python -m bench.schedules --recipes swa30 swa30-source onecycle30 --runs 3 --data PATH --scale small --epochs 10

The bench writes a table of accuracies and two pictures. It appends every run to runs.jsonl when the run ends, so that
an interrupted bench can continue. `--epochs` gives all recipes the same length and keeps their proportions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from bench import harness
from bench.runs import Job, train_all
from fastcifar.cli.schedule import preview
from fastcifar.config.config import Config
from fastcifar.config.recipes import RECIPES, find_recipe
from fastcifar.config.settings import with_settings
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load_of
from fastcifar.runs import intervals, plots, record


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipes: tuple[str, ...] = tuple(RECIPES)
    """Names of recipes."""
    runs: int = 3
    """Seeds of each recipe: first_seed, first_seed + 1, ..."""
    first_seed: int = 0
    """Choose settings on seeds 0 to 9; report results of seeds from 100 on."""
    data: str = "auto"
    """As in train_fast.py."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    network: Literal["resnet9", "resnet18"] = "resnet9"
    """As in train_fast.py."""
    epochs: float | None = None
    """Epochs of every recipe; None: each its own."""
    subset: int | None = None
    """As in train_fast.py."""
    quick: bool = False
    """2,000 images, 2 epochs, 2 seeds: shows that the bench works."""
    out: Path = Path("bench-results/schedules")
    """Folder of runs.jsonl, table.md, table.json and the pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.schedules")
    if options.quick:
        options = replace(options, runs=2, epochs=2.0, subset=min(options.subset or 2_000, 2_000))
    try:
        configs = {name: configure(find_recipe(name), options) for name in options.recipes}
        dataset = load_of(next(iter(configs.values())), progress=True)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    with harness.interruptible() as interruption:
        rows.extend(train_all(options.out, jobs(configs, dataset, options)))
    write_results(configs, rows, options)
    return interruption.code


def configure(recipe: Config, options: Options) -> Config:
    """The config of a recipe with the settings of the bench."""
    epochs = recipe.epochs if options.epochs is None else options.epochs
    return with_settings(
        recipe, data=options.data, network=options.network, scale=options.scale, subset=options.subset, eval_every=1,
        epochs=epochs,
    )  # fmt: skip


def jobs(configs: dict[str, Config], dataset: Dataset, options: Options) -> Iterator[Job]:
    """Seed by seed, so that an interrupted bench has the same seeds of every recipe."""
    for seed in range(options.first_seed, options.first_seed + options.runs):
        for name, config in configs.items():
            yield Job(key={"recipe": name, "epochs": config.epochs, "seed": seed}, config=config, dataset=dataset)


def write_results(configs: dict[str, Config], all_rows: list[dict[str, Any]], options: Options) -> None:
    """Writes table.md, table.json, learning_rates.png and accuracies.png of the recipes that have runs."""
    rows = {name: [row for row in all_rows if row["recipe"] == name] for name in configs}
    configs = {name: config for name, config in configs.items() if rows[name]}
    if not configs:
        return
    table: list[dict[str, Any]] = []
    for name, config in configs.items():
        stats = {kind: intervals.interval([row[kind] for row in rows[name] if row[kind] is not None])
                 for kind in ("accuracy_raw", "accuracy_swa", "accuracy_tta")}  # fmt: skip
        time_s = intervals.interval([row["time_s"]["train"] + row["time_s"]["swa"] for row in rows[name]])
        table.append({"recipe": name, "schedule": config.schedule.name, "epochs": config.epochs, "time_s": time_s,
                      **stats})  # fmt: skip
    table.sort(key=lambda entry: -max(entry[kind]["mean"] or 0 for kind in ("accuracy_raw", "accuracy_swa")))
    first = all_rows[0]
    head = {**harness.describe_environment(next(iter(configs.values()))), "dataset": first["dataset"],
            "n_train": first["n_train"], "runs": options.runs}  # fmt: skip
    record.write_json(options.out / "table.json", {**head, "table": table})
    header = ("recipe", "schedule", "epochs", "raw weights %", "averaged %", "with views %", "n", "train s")
    lines = [
        (entry["recipe"], entry["schedule"], f"{entry['epochs']:g}", *(harness.format_percent(entry[kind]) for kind in
         ("accuracy_raw", "accuracy_swa", "accuracy_tta")), entry["accuracy_raw"]["n"],
         f"{entry['time_s']['mean']:.0f}")
        for entry in table
    ]  # fmt: skip
    network = next(iter(configs.values())).model.network
    note = (f"{head['dataset']}, {head['n_train']:,} training images, {network}, scale {first['scale']}, "
            f"{head['device']}, "
            f"{head['precision']}; mean ± std [95% interval of the mean].\n\n")  # fmt: skip
    (options.out / "table.md").write_text(note + harness.markdown_table(header, lines))
    curves = {name: preview(with_settings(config, subset=None), first["n_train"]) for name, config in configs.items()}
    plots.draw_schedules(options.out / "learning_rates.png", curves)
    histories = {name: [row["history"] for row in rows[name]] for name in configs}
    averaged = {name: [row["accuracy_swa"] for row in rows[name]] for name in configs if configs[name].tail}
    averaged = {name: values for name, values in averaged.items() if None not in values}  # a run too short for a tail
    draw_accuracies(options.out / "accuracies.png", histories, averaged)
    print((options.out / "table.md").read_text())


def draw_accuracies(
    path: Path, histories: dict[str, list[list[dict[str, Any]]]], averaged: dict[str, list[float]]
) -> None:
    """Test accuracy per epoch of the raw weights: mean over the seeds of each name, and their range as a band.

    averaged: accuracy of the averaged weights of each seed, for the names that have some: their mean is a star at the
    end. The axis begins ten points below the best accuracy, because there the runs differ.
    """
    figure, axes = plots.make_figure(1, 9, 6)
    axis = axes[0][0]
    for i, (name, runs) in enumerate(histories.items()):
        measured = [e for e, row in enumerate(runs[0]) if row["accuracy_test"] is not None]
        values = 100 * torch.tensor([[run[e]["accuracy_test"] for e in measured] for run in runs])  # [runs, measured]
        epochs = torch.tensor(measured) + 1
        colour = plots.style(i)["color"]
        axis.plot(epochs, values.mean(0), marker="o", markersize=3, label=plots.literal(name), **plots.style(i))
        axis.fill_between(epochs, values.amin(0), values.amax(0), color=colour, alpha=0.15, linewidth=0)
        if name in averaged:
            axis.plot(epochs[-1], 100 * sum(averaged[name]) / len(averaged[name]), "*", markersize=13, color=colour)
    axis.set(title="test accuracy of the raw weights, mean and range over seeds (star: averaged)")
    best = max(line.get_ydata().max() for line in axis.lines)
    axis.set_ylim(bottom=max(axis.get_ylim()[0], best - 10))
    axis.yaxis.set_major_formatter("{x:g}%")
    plots.count_epochs(axis)
    figure.legend(loc="outside lower center", ncols=4)
    plots.save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
