"""Picture of several runs: training loss and accuracy per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcifar.runs.plots import literal, make_figure, save_figure
from fastcifar.runs.results import RunResults

LINE_STYLES = ("-", "--", ":", "-.")
"""A style for each round of ten colours."""


def draw_comparison(path: Path, runs: Sequence[RunResults], names: Sequence[str]) -> None:
    """Loss (left) and accuracy (right) of each run over its epochs; a star is the accuracy that the run stands for."""
    figure, axes = make_figure(1, 11, 4.6 + 0.2 * -(-len(runs) // 2), columns=2)
    loss_axis, accuracy_axis = axes[0]
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        style = {"color": f"C{i % 10}", "linestyle": LINE_STYLES[i // 10 % len(LINE_STYLES)], "markersize": 3}
        mark = "o" if len(run.history) < 60 else ""
        for axis, key, scale in ((loss_axis, "loss", 1), (accuracy_axis, "accuracy", 100)):
            points = [(row["epoch"], scale * row[key]) for row in run.history if row[key] is not None]
            label = literal(name) if axis is loss_axis else None
            axis.plot([x for x, _ in points], [y for _, y in points], marker=mark, label=label, **style)
        if run.summary.get("accuracy") is not None:
            end = run.summary["epochs"] or run.history[-1]["epoch"]
            accuracy_axis.plot(end, 100 * run.summary["accuracy"], "*", color=f"C{i % 10}", markersize=11,
                               markeredgecolor="black", markeredgewidth=0.5, zorder=3)  # fmt: skip
    held_out = {row["held_out"] for run in runs for row in run.history if row["accuracy"] is not None}
    of = {frozenset({True}): "held-out", frozenset({True, False}): "test or held-out"}.get(frozenset(held_out), "test")
    loss_axis.set(title="training loss (mean of the epoch)", xlabel="epoch")
    accuracy_axis.set(title=f"{of} accuracy (star: result of the run)", xlabel="epoch")
    accuracy_axis.yaxis.set_major_formatter("{x:g}%")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    save_figure(figure, path)
