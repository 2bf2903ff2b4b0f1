"""What accuracy does a number of passes over the data, or an amount of arithmetic, buy? Draws it from the records.

    python -m bench.frontier --out docs/pictures

Reads the raw runs under records/ on the lossless images, which their record names `cifar10`, and the published figures
of other programs (records/published.json), and writes frontier.png and curves.png. Nothing is trained.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.time_to_accuracy import BASE
from fastcifar.data.files import write_atomically
from fastcifar.optim.schedule_table import ScheduleTable
from fastcifar.runs import intervals, plots

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    records: Path = ROOT / "records"
    """Folder of the raw runs."""
    out: Path = ROOT / "docs" / "pictures"
    """Where the pictures go."""
    curves: str = "swa30"
    """Recipe whose first run is drawn in curves.png."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.frontier")
    runs = list(read_runs(options.records))
    if not runs:
        print(f"error: {options.records}: no runs on CIFAR-10 in it; give the folder of the records", file=sys.stderr)
        return 2
    published = json.loads((options.records / "published.json").read_text())
    full_size = [run for run in runs if run["scale"] != "small"]
    draw_frontier(options.out / "frontier.png", group(full_size), published)
    with_history = [run for run in runs if run.get("history") and run["recipe"] == options.curves]
    if with_history:
        draw_run(options.out / "curves.png", with_history[0])
    print(options.out)
    return 0


def read_runs(records: Path) -> Iterator[dict[str, Any]]:
    """Summaries of all finished runs of recipes on the whole CIFAR-10, which is recognised by its content.

    A copy with JPEG loss has another name in its record and is left out, as is a variant of a recipe.
    """
    for path in sorted([*records.rglob("*.json"), *records.rglob("*.jsonl")]):
        text = path.read_text()
        for row in [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]:
            if not isinstance(row, dict) or "accuracy" not in row or is_variant(row):
                continue
            if row.get("dataset") == "cifar10" and row.get("n_train") == 50_000:
                yield row


def is_variant(row: dict[str, Any]) -> bool:
    """Whether a run is not one of its recipe: a variant of a bench other than its length, or another network."""
    config = row.get("config", {})
    network = config.get("model", config).get("network", "resnet9")  # flat in older records
    variant = row.get("variant", BASE)
    return network != "resnet9" or (variant != BASE and any(not s.startswith("epochs=") for s in variant.split()))


def group(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by recipe, scale and epochs."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(f"{run['recipe']}, {run['scale']}, {run['epochs']:g} epochs", []).append(run)
    return groups


def draw_frontier(path: Path, groups: dict[str, list[dict[str, Any]]], published: list[dict[str, Any]]) -> None:
    """Accuracy over passes and over PFLOP: mean and 95% interval of fastcifar as dots, published figures as stars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key, label in zip(
        figure.subplots(1, 2), ("epochs", "train_pflop"), ("passes over the data", "PFLOP of training"), strict=True
    ):
        for name, runs in sorted(groups.items()):
            stats = intervals.interval([100 * run["accuracy"] for run in runs])
            low, high = stats["ci95"] or (stats["mean"], stats["mean"])
            error = [[stats["mean"] - low], [high - stats["mean"]]]
            axis.errorbar(runs[0][key], stats["mean"], yerr=error, fmt="o", label=f"{name}, n = {stats['n']}")
        for peer in published:
            axis.plot(peer[key], 100 * peer["accuracy"], "*", markersize=13, label=f"{peer['name']} (published)")
        axis.set(xlabel=label, ylabel="test accuracy with views, %")
        axis.margins(0.25)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(loc="lower right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, lambda f: f.write(picture.getvalue()))


def draw_run(path: Path, run: dict[str, Any]) -> None:
    """Curves of a run from its row: learning rate and momentum as they stood at the end of each epoch."""
    history, num_steps = run["history"], run["num_steps"]
    table = torch.empty(num_steps, 2, dtype=torch.float64)
    first = 0
    for row in history:
        table[first : row["step"]] = torch.tensor([row["lr"], row["momentum"]], dtype=torch.float64)
        first = row["step"]
    in_cycle = [row["step"] for row in history if row["phase"] == "cycle"]
    plots.draw_curves(path, history, ScheduleTable(table, in_cycle[-1] if in_cycle else 0), run)


if __name__ == "__main__":
    sys.exit(main())
