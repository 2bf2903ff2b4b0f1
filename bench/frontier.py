"""What accuracy does a number of passes over the data, or an amount of arithmetic, buy? Draws it from the records.

    python -m bench.frontier --out docs/pictures

records/frontier.json names the series and the files and variants of their runs, records/published.json the figures of
other programs. Writes frontier.png and curves.png. Nothing is trained.

A series that is `naive` was trained before the network left out what no pool reads. The same training takes a tenth
less arithmetic now (`bench.work`), so its runs stand at the arithmetic of today.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.work import flop_per_image
from fastcifar.config.recipes import find_recipe
from fastcifar.config.shapes import SHAPES
from fastcifar.optim.schedule_table import make_schedule_table
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
    try:
        series = [Series.read(options.records, one) for one in read_json(options.records / "frontier.json")]
        published = read_json(options.records / "published.json")
    except (OSError, KeyError, TypeError, ValueError) as e:
        print(f"error: {options.records}: {e!r}; give the folder of the records", file=sys.stderr)
        return 2
    draw_frontier(options.out / "frontier.png", series, published)
    runs = [run for path in sorted(options.records.rglob("*.json*")) for run in read_runs(path)]
    with_history = [run for run in runs if run.get("history") and run["recipe"] == options.curves
                    and run["dataset"] == "cifar10"]  # fmt: skip
    try:
        for run in with_history[:1]:
            draw_run(options.out / "curves.png", run)
    except ValueError as e:
        print(f"error: {e}; choose a run of today's recipe by --curves RECIPE", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The summaries in a .json file or in the lines of a .jsonl file, which has rows of other kinds, too."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [run for run in map(json.loads, lines) if isinstance(run, dict) and "accuracy" in run]


@dataclass(frozen=True)
class Series:
    """Runs of one way to train, by length."""

    name: str
    by_length: dict[float, list[dict[str, Any]]]
    naive: bool
    """Whether they computed what no pool reads."""

    @classmethod
    def read(cls, records: Path, described: dict[str, Any]) -> Series:
        """The runs of an entry of frontier.json. ValueError where there are none, or a run is not on CIFAR-10."""
        by_length: dict[float, list[dict[str, Any]]] = {}
        for pattern, variant in described["rows"].items():
            for path in sorted(records.glob(pattern)):
                for run in read_runs(path):
                    if variant is None or run["variant"] == variant:
                        by_length.setdefault(float(run["epochs"]), []).append(run)
        runs = [run for some in by_length.values() for run in some]
        if not runs or any(run["dataset"] != "cifar10" for run in runs):
            raise ValueError(f"{described['name']}: no runs, or some that are not on the lossless CIFAR-10")
        return cls(described["name"], dict(sorted(by_length.items())), described["naive"])

    @property
    def count(self) -> str:
        """Number of runs: one figure, or the least and the most of a length."""
        counts = sorted({len(runs) for runs in self.by_length.values()})
        return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])


def lean_share() -> float:
    """What is left of the arithmetic of the full network without the outputs that no pool reads; 1 - 10.4%."""
    lean, naive = (flop_per_image(SHAPES["full"], 32, True, leave_out) for leave_out in (True, False))
    return lean / naive


def draw_frontier(path: Path, series: Sequence[Series], published: list[dict[str, Any]]) -> None:
    """Accuracy over passes and over PFLOP: mean and 95% interval of fastcifar as dots, others as hollow markers."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plots.make_figure(1, 12, 6.5, columns=2)
    labels = {"epochs": "passes over the training images", "train_pflop": "PFLOP of training"}
    for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
        for one in series:
            draw_series(axis, one, key)
        for marker, peer in zip("*P^vXD", published, strict=False):
            axis.plot(peer[key], 100 * peer["accuracy"], marker, markersize=7, color="k", mfc="white", zorder=3,
                      label=f"{peer['name']}, published")  # fmt: skip
        axis.axhline(94, color="k", lw=0.6, ls=":")
        axis.set(xlabel=label, xscale="log")
        axis.yaxis.set_major_formatter("{x:g}%")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8), numticks=99))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    handles = {label: handle for handle, label in zip(*axes[0][0].get_legend_handles_labels(), strict=True)}
    names = sorted(handles, key=lambda name: name.endswith("published"))
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=3)
    figure.suptitle("accuracy on CIFAR-10's test images, with views (fastcifar: mean of n runs, and its 95% interval)")
    plots.save_figure(figure, path)


def draw_series(axis: Any, series: Series, key: str) -> None:
    """Draws the runs of a series at all its lengths, over the value of `key`."""
    stats = [intervals.interval([100 * run["accuracy"] for run in runs]) for runs in series.by_length.values()]
    means = [s["mean"] for s in stats]
    reach = [s["ci95"][1] - s["mean"] if s["ci95"] else 0.0 for s in stats]
    at = [runs[0][key] for runs in series.by_length.values()]
    if series.naive and key == "train_pflop":
        at = [pflop * lean_share() for pflop in at]
    axis.errorbar(at, means, reach, fmt="o-", lw=0.8, ms=4, capsize=2, label=f"{series.name}, n = {series.count}")


def draw_run(path: Path, run: dict[str, Any]) -> None:
    """Curves of a recorded run, as the program draws them. ValueError if its recipe has other rates today."""
    config, history = replace(find_recipe(run["recipe"]), epochs=run["epochs"]), run["history"]
    schedule = make_schedule_table(config, round(run["num_steps"] / run["epochs"]))
    recorded = torch.tensor([[row["lr"], row["momentum"]] for row in history], dtype=torch.float64)
    if not torch.allclose(schedule.table[[row["step"] - 1 for row in history]], recorded):
        raise ValueError(f"the recorded run of {run['recipe']} had another learning rate or momentum than its recipe")
    plots.draw_curves(path, history, schedule, run, config)


if __name__ == "__main__":
    sys.exit(main())
