"""What accuracy does a number of passes over the data, or an amount of arithmetic, buy? Draws it from the records.

    python -m bench.frontier --out docs/pictures

Reads the raw runs under records/ on the lossless images, which their record names `cifar10`, and the published figures
of other programs (records/published.json), and writes frontier.png and curves.png. Nothing is trained.
"""

from __future__ import annotations

import io
import json
import sys
import textwrap
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
    """Summaries of all finished runs of resnet9 on the whole CIFAR-10, which is recognised by its content.

    A copy with JPEG loss has another name in its record and is left out.
    """
    for path in sorted([*records.rglob("*.json"), *records.rglob("*.jsonl")]):
        text = path.read_text()
        for row in [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]:
            if not isinstance(row, dict) or "accuracy" not in row or network_of(row) != "resnet9":
                continue
            if row.get("dataset") == "cifar10" and row.get("n_train") == 50_000:
                yield row


def network_of(row: dict[str, Any]) -> str:
    """The network of a run."""
    config = row.get("config", {})
    network: str = config.get("model", config).get("network", "resnet9")  # flat in older records
    return network


def settings_of(row: dict[str, Any]) -> str:
    """The settings besides the length in which a run differs from its recipe, as a bench names them."""
    variant = row.get("variant", BASE)
    return "" if variant == BASE else " ".join(s for s in variant.split() if not s.startswith("epochs="))


def group(runs: list[dict[str, Any]]) -> dict[str, dict[float, list[dict[str, Any]]]]:
    """Runs by recipe, scale and settings, then by epochs. A variant counts if it was measured at several lengths."""
    groups: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for run in runs:
        name = ", ".join(filter(None, (run["recipe"], run["scale"], settings_of(run))))
        groups.setdefault(name, {}).setdefault(run["epochs"], []).append(run)
    recipes = {", ".join((run["recipe"], run["scale"])) for run in runs}
    return {name: dict(sorted(by_length.items())) for name, by_length in sorted(groups.items())
            if name in recipes or len(by_length) > 1}  # fmt: skip


def draw_frontier(
    path: Path, groups: dict[str, dict[float, list[dict[str, Any]]]], published: list[dict[str, Any]]
) -> None:
    """Accuracy over passes and over PFLOP: mean and 95% interval of fastcifar as dots, published figures as stars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key, label in zip(
        figure.subplots(1, 2), ("epochs", "train_pflop"), ("passes over the data", "PFLOP of training"), strict=True
    ):
        for name, by_length in groups.items():
            draw_group(axis, name, list(by_length.values()), key)
        for peer in published:
            axis.plot(peer[key], 100 * peer["accuracy"], "*", markersize=13, label=f"{peer['name']} (published)")
        axis.set(xlabel=label, ylabel="test accuracy with views, %", xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.grid(which="both", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, lambda f: f.write(picture.getvalue()))


def draw_group(axis: Any, name: str, lengths: list[list[dict[str, Any]]], key: str) -> None:
    """Draws the runs of a group at all its lengths, over the value of `key`."""
    stats = [intervals.interval([100 * run["accuracy"] for run in runs]) for runs in lengths]
    means = [s["mean"] for s in stats]
    reach = [s["ci95"][1] - s["mean"] if s["ci95"] else 0.0 for s in stats]
    counts = sorted({s["n"] for s in stats})
    n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
    label = textwrap.fill(f"{name}, n = {n}", 80)
    axis.errorbar([runs[0][key] for runs in lengths], means, reach, fmt="o-", lw=0.8, ms=5, capsize=2, label=label)


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
