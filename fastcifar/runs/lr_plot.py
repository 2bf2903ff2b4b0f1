"""Picture of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastcifar.runs.plots import literal, make_figure, save_figure


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
