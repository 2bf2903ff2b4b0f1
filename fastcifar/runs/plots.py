"""Pictures by matplotlib: curves of one run and of several, schedules, a range test, and an evaluation."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.data.messages import printable
from fastcifar.files import write_atomically
from fastcifar.optim.cooling import NO_COOLING
from fastcifar.optim.schedule_table import ScheduleTable
from fastcifar.runs.record import epoch_accuracy
from fastcifar.runs.results import RunResults

LINE_STYLES = ("-", "--", ":", "-.")
"""A style for each round of ten colours."""
MAX_NAMED_CLASSES = 40
"""With more classes the matrix has neither names nor numbers: they would lie over each other."""
MISTAKES_IN_A_ROW = 8


def make_figure(rows: int, width_in: float, height_in: float, columns: int | None = None) -> tuple[Any, Any]:
    """(figure, axes [rows, columns]); by default two columns where there are several rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")  # no pyplot: no display, no global state
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns or min(rows, 2), squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG with a palette, a third of the bytes, whole or not at all.

    Characters that the font lacks are drawn as boxes.
    """
    from PIL import Image

    drawn, picture = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(drawn, format="png", dpi=110)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize().save(picture, format="png")
    write_atomically(path, lambda f: f.write(picture.getvalue()))


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: two dollar signs make no formula, and a name with an underscore before it is
    not left out of a legend."""
    return (" " if text.startswith("_") else "") + printable(text).replace("$", r"\$")


def style(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th of several lines: forty differ."""
    return {"color": f"C{i % 10}", "linestyle": LINE_STYLES[i // 10 % len(LINE_STYLES)]}


def count_epochs(axis: Any) -> None:
    """Makes the x axis one of epochs, with a grid and ticks at whole ones alone."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)


def parts_of(config: Config, tail: float, end: float) -> list[dict[str, Any]]:
    """What is shaded in a run of `end` epochs, as arguments of axvspan: low resolution, and the tail."""
    parts: list[dict[str, Any]] = []
    for size_px, group in groupby(range(math.ceil(end)), lambda epoch: image_size(config, epoch)):
        epochs = [*group]
        if size_px < 32:
            label = f"low resolution: trained at {size_px} pixels, tested at 32"
            parts.append({"xmin": epochs[0], "xmax": min(epochs[-1] + 1, end), "color": "tab:blue",
                          "alpha": 0.3 - size_px / 160, "label": label})  # fmt: skip
    if tail < end:
        label = "tail: weights are averaged (SWA)"
        parts.append({"xmin": tail, "xmax": end, "color": "tab:orange", "alpha": 0.15, "label": label})
    return parts


def draw_curves(
    path: Path, history: list[dict[str, Any]], schedule: ScheduleTable, summary: dict[str, Any], config: Config
) -> None:
    """curves.png of a run folder: lr and momentum per step, loss and accuracy per epoch, parts of the run shaded.

    The accuracies of averaged weights and with views, measured after the run, stand side by side to the right of it.
    """
    table, num_steps = schedule.table, len(schedule.table)
    per_epoch = summary["num_steps"] / summary["epochs"]
    figure, axes = make_figure(2, 11, 7.3)
    (lr_axis, momentum_axis), (loss_axis, accuracy_axis) = axes
    step_epochs = torch.arange(num_steps) / per_epoch
    lr_axis.plot(step_epochs, table[:, 0], color="tab:blue")
    lr_axis.set(title="learning rate", ylim=(0, None))
    momentum_axis.plot(step_epochs, table[:, 1], color="tab:purple")
    momentum_axis.set(title="momentum")
    momentum_axis.margins(y=0.2)

    ends = [row["step"] / per_epoch for row in history]
    mark = "o-" if len(history) < 60 else "-"
    loss_axis.plot(ends, [row["loss_train"] for row in history], mark, markersize=3, color="tab:red")
    loss_axis.set(title="training loss (mean of the epoch)")
    values = [epoch_accuracy(row) for row in history]
    points = [(e, 100 * v) for e, v in zip(ends, values, strict=True) if v is not None]
    if points:
        accuracy_axis.plot(*zip(*points, strict=True), mark, markersize=3, color="tab:green", label="raw weights")
    end = num_steps / per_epoch
    after = ("accuracy_swa", "averaged weights", "*", 0.025), ("accuracy_tta", "with views", "P", 0.065)
    for key, label, marker, way in after:
        if summary.get(key) is not None:
            text = f"{label} {summary[key]:.2%}"
            accuracy_axis.plot(summary["epochs"] + way * end, 100 * summary[key], marker, markersize=10, label=text)
    accuracy_axis.set(title="test accuracy" if history[-1]["accuracy_test"] is not None else "held-out accuracy")
    accuracy_axis.yaxis.set_major_formatter("{x:g}%")
    lines, _ = accuracy_axis.get_legend_handles_labels()
    parts = parts_of(config, schedule.tail_step / per_epoch, end)
    for axis in axes.flat:
        count_epochs(axis)
        axis.set_xlim(0, 1.09 * end)
        spans = [axis.axvspan(linewidth=0, **part) for part in parts]
    figure.legend(handles=[*lines, *spans], loc="outside lower center", ncols=3)
    data = "built-in synthetic images" if summary["dataset"] == "synthetic" else summary["dataset"]
    figure.suptitle(literal(f"{summary['recipe']}, {summary['scale']}, seed {summary['seed']}, {data}"))
    save_figure(figure, path)


def draw_schedules(path: Path, schedules: dict[str, tuple[ScheduleTable, int]]) -> None:
    """Learning rate and momentum of named (schedule, steps per epoch) on one picture, that of a first stage that cools
    dotted.

    Left over epochs; of several also over the share of the run and relative to the peak, so that shapes compare.
    """
    several = len(schedules) > 1
    figure, axes = make_figure(2, 11 if several else 6, 7 + 0.2 * (len(schedules) // 4), columns=1 + several)
    for column, relative in enumerate((False, True)[: 1 + several]):
        for row, title in enumerate(("learning rate", "momentum")):
            axis = axes[row][column]
            for i, (name, (schedule, steps_per_epoch)) in enumerate(schedules.items()):
                table, tail = schedule.table, schedule.tail_step
                x = torch.arange(len(table)) / (len(table) if relative else steps_per_epoch)
                y = table[:, row] / table[:, row].max() if relative and row == 0 else table[:, row]
                axis.plot(x, y, label=literal(name), linewidth=1.4, **style(i))
                axis.plot(x[tail:], y[tail:], color=f"C{i % 10}", linewidth=4, alpha=0.35)
                if row == 0 and schedule.cooling != NO_COOLING:
                    axis.plot(
                        x, y * schedule.cooling.factors(len(table)), color=f"C{i % 10}", linewidth=1.4, linestyle=":"
                    )
            axis.set(title=f"{title} / peak" if relative and row == 0 else title, xlabel="share of the run")
            axis.grid(alpha=0.3)
            if not relative:
                count_epochs(axis)
            if row == 0:
                axis.set_ylim(0, None)
            else:
                axis.margins(y=0.2)
    if several:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    of = f"{len(schedules)} recipes" if several else literal(next(iter(schedules)))
    tails = any(schedule.tail_step < len(schedule) for schedule, _ in schedules.values())
    cools = any(schedule.cooling != NO_COOLING for schedule, _ in schedules.values())
    marks = ["thick: averaging tail"] * tails + ["dotted: first stage"] * cools
    figure.suptitle(f"learning rate and momentum of {of}" + (f" ({', '.join(marks)})" if marks else ""))
    save_figure(figure, path)


def draw_comparison(path: Path, runs: Sequence[RunResults], names: Sequence[str]) -> None:
    """Loss (left) and accuracy (right) of each run over its epochs; a star is the accuracy that the run stands for."""
    figure, axes = make_figure(1, 11, 5.5 + 0.2 * -(-len(runs) // 2), columns=2)
    loss_axis, accuracy_axis = axes[0]
    few = len(runs) <= 6
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        look = {**style(i), "markersize": 3, "marker": "o" if few and len(run.history) < 60 else "",
                "linewidth": 1.5 if few else 1}  # fmt: skip
        result = run.summary.get("accuracy")
        label = literal(name if result is None else f"{name}: {result:.2%}")
        for axis, key, scale in ((loss_axis, "loss", 1), (accuracy_axis, "accuracy", 100)):
            points = [(row["epoch"], scale * row[key]) for row in run.history if row[key] is not None]
            axis.plot([x for x, _ in points], [y for _, y in points], label=label, **look)
        if result is not None:
            end = run.summary["epochs"] or run.history[-1]["epoch"]
            accuracy_axis.plot(end, 100 * result, "*", color=look["color"], markersize=11 if few else 7,
                               markeredgecolor="black", markeredgewidth=0.5, zorder=3)  # fmt: skip
    held_out = {row["held_out"] for run in runs for row in run.history if row["accuracy"] is not None}
    of = {frozenset({True}): "held-out", frozenset({True, False}): "test or held-out"}.get(frozenset(held_out), "test")
    loss_axis.set(title="training loss (mean of the epoch)")
    accuracy_axis.set(title=f"{of} accuracy (star: result of the run)")
    accuracy_axis.yaxis.set_major_formatter("{x:g}%")
    for axis in axes.flat:
        count_epochs(axis)
        axis.set_xlim(left=0)
    figure.legend(*loss_axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(f"loss and accuracy of {len(runs)} runs after each epoch")
    save_figure(figure, path)


def draw_range_test(
    path: Path, lr: Sequence[float], loss: Sequence[float], smoothed: Sequence[float], peak: float | None, title: str
) -> None:
    """Loss of each step and smoothed loss over the learning rate, with the suggested peak."""
    figure, axes = make_figure(1, 9, 5.5)
    axis = axes[0][0]
    axis.plot(lr, loss, ".", color="tab:gray", markersize=4, alpha=0.6, label="loss of the step")
    axis.plot(lr, smoothed, color="tab:red", label="smoothed")
    if peak is not None:
        axis.axvline(peak, color="tab:blue", linestyle="--", label=f"suggested: {peak:.3g}")
    low, high = min(loss), max(smoothed)
    start = smoothed[0]
    axis.set(xscale="log", xlabel="learning rate (log scale)", ylabel="training loss", title=literal(title))
    axis.set_ylim(low - 0.1 * (start - low + 0.1), min(high, start + 1.5 * (start - low + 0.1)) + 0.1)
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower left")
    save_figure(figure, path)


@dataclass(frozen=True)
class Mistake:
    """An image that a model names wrongly."""

    image: NDArray[Any]
    """uint8 [H, W, 3]."""
    true: str
    predicted: str
    probability: float
    """Of the predicted class."""


def draw_confusion(path: Path, confusion: Tensor, classes: Sequence[str]) -> None:
    """Image of a confusion matrix [K, K] of counts: a row per true class, coloured by the share of the row."""
    count = len(classes)
    side_in = min(16.0, max(5.0, 0.62 * count + 1.8))
    figure, axes = make_figure(1, side_in + 0.8, side_in)
    axis = axes[0][0]
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= MAX_NAMED_CLASSES:
        names = [literal(name if len(name) <= 20 else name[:19] + "…") for name in classes]
        axis.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(count), names)
        for i, row in enumerate(confusion.tolist()):
            for j, number in enumerate(row):
                if number:
                    colour = "white" if share[i, j] > 0.5 else "black"
                    axis.text(j, i, str(number), ha="center", va="center", fontsize=9, color=colour)
    axis.set(xlabel="predicted class", ylabel="true class", title="confusion matrix (number of test images)")
    figure.colorbar(image, ax=axis, format="{x:.0%}", label="share of the true class", shrink=0.8)
    save_figure(figure, path)


def draw_mistakes(path: Path, mistakes: Sequence[Mistake], num_wrong: int, num_images: int) -> None:
    """Sheet of images, with the true class, the predicted one and its probability above each."""
    rows = max(1, -(-len(mistakes) // MISTAKES_IN_A_ROW))
    figure, axes = make_figure(rows, 1.6 * MISTAKES_IN_A_ROW, 1.95 * rows + 0.5, MISTAKES_IN_A_ROW)
    for axis in axes.flat:
        axis.axis("off")
    for axis, mistake in zip(axes.flat, mistakes, strict=False):
        axis.imshow(mistake.image, interpolation="nearest")
        axis.set_title(
            literal(f"{mistake.true[:16]}\n→ {mistake.predicted[:16]} {mistake.probability:.0%}"), fontsize=9
        )
    wrong = f"{num_wrong} of {num_images} test images are named wrongly"
    of_these = f"; the {len(mistakes)} with the most probable wrong class (true → predicted)" if mistakes else ""
    figure.suptitle(wrong + of_these, fontsize=11)
    save_figure(figure, path)
