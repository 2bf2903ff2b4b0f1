"""Which schedule is best at equal epochs? Trains recipes with the same seeds and writes the table and two pictures.

    python -m bench.schedules --recipes swa30 swa30-source onecycle30 --runs 3 --data PATH --scale small --epochs 10

Every run is appended to runs.jsonl in --out as it ends; a bench that was stopped goes on where it was. `--epochs` gives
all recipes the same length and keeps their proportions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from bench import harness
from fastcifar import data, flags, plots, record
from fastcifar.config import Config
from fastcifar.entry import preview
from fastcifar.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipes: tuple[str, ...] = tuple(RECIPES)
    """Names of recipes."""
    runs: int = 3
    """Seeds of each: first_seed, first_seed + 1, ..."""
    first_seed: int = 0
    """Settings are chosen on seeds 0 to 9; figures that are reported come from seeds from 100 on."""
    data: str = "auto"
    """As in train_fast.py."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """As in train_fast.py."""
    epochs: float | None = None
    """Epochs of every recipe; None: each its own."""
    subset: int | None = None
    """As in train_fast.py."""
    quick: bool = False
    """2,000 images, 2 epochs, 2 seeds: shows that it works."""
    out: Path = Path("bench-results/schedules")
    """Where runs.jsonl, table.md, table.json and the pictures go."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.schedules")
    if options.quick:
        options = replace(options, runs=2, epochs=2.0, subset=2_000)
    try:
        configs = {name: configure(flags.recipe(name), options) for name in options.recipes}
        dataset = data.load(next(iter(configs.values())))
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    with harness.stoppable() as stop:
        run_all(configs, dataset, options)
    write_results(configs, options)
    return stop.code


def configure(recipe: Config, options: Options) -> Config:
    """A recipe under the bench's settings; one checkpoint-free run without side effects."""
    return replace(
        recipe, data=options.data, scale=options.scale, subset=options.subset, checkpoint_every=0,
        eval_every=1,
        epochs=recipe.epochs if options.epochs is None else options.epochs,
    )  # fmt: skip


def run_all(configs: dict[str, Config], dataset: data.Dataset, options: Options) -> None:
    """All runs, seed by seed so that a bench stopped early has the same seeds of every recipe."""
    path = options.out / "runs.jsonl"
    rows = harness.read_rows(path)
    done = {(row["recipe"], row["epochs"], row["seed"]) for row in rows}
    for seed in range(options.first_seed, options.first_seed + options.runs):
        for name, config in configs.items():
            if (name, config.epochs, seed) in done:
                continue
            result = harness.train_once(harness.with_seed(config, seed), dataset)
            rows.append({**result.summary, "history": result.history})
            record.write_lines(path, rows)
            print(f"{name} seed {seed}: {result.summary['accuracy']:.2%}", flush=True)


def write_results(configs: dict[str, Config], options: Options) -> None:
    """table.md, table.json, learning_rates.png and accuracies.png of the recipes that have runs."""
    rows = harness.read_rows(options.out / "runs.jsonl")
    ran = {(row["recipe"], row["epochs"]) for row in rows}
    configs = {name: c for name, c in configs.items() if (name, c.epochs) in ran}
    if not configs:
        return
    table: list[dict[str, Any]] = []
    histories = {}
    for name, config in configs.items():
        mine = [row for row in rows if (row["recipe"], row["epochs"]) == (name, config.epochs)]
        histories[name] = [row["history"] for row in mine]
        stats = {k: record.interval([row[k] for row in mine if row[k] is not None])
                 for k in ("accuracy_raw", "accuracy_swa", "accuracy_tta")}  # fmt: skip
        time_s = record.interval([row["time_s"]["train"] + row["time_s"]["swa"] for row in mine])
        table.append({"recipe": name, "schedule": config.schedule, "epochs": config.epochs, "time_s": time_s, **stats})
    table.sort(key=lambda entry: -max(entry[k]["mean"] or 0 for k in ("accuracy_raw", "accuracy_swa")))
    head = {**harness.facts(next(iter(configs.values()))), "dataset": rows[0]["dataset"], "n_train": rows[0]["n_train"],
            "runs": options.runs}  # fmt: skip
    record.write_json(options.out / "table.json", {**head, "table": table})
    header = ("recipe", "schedule", "epochs", "raw weights %", "averaged %", "with views %", "n", "train s")
    lines = [
        (e["recipe"], e["schedule"], f"{e['epochs']:g}", *(harness.percent(e[k]) for k in
         ("accuracy_raw", "accuracy_swa", "accuracy_tta")), e["accuracy_raw"]["n"], f"{e['time_s']['mean']:.0f}")
        for e in table
    ]  # fmt: skip
    note = (f"{head['dataset']}, {head['n_train']:,} training images, scale {rows[0]['scale']}, {head['device']}, "
            f"{head['precision']}; mean ± std [95% interval of the mean].\n\n")  # fmt: skip
    (options.out / "table.md").write_text(note + harness.markdown(header, lines))
    curves = {n: preview(replace(c, subset=None), rows[0]["n_train"]) for n, c in configs.items()}
    plots.draw_schedules(options.out / "learning_rates.png", curves)
    plots.draw_accuracies(options.out / "accuracies.png", histories)
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
