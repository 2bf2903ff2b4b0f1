"""Pictures of an evaluation: the confusion matrix, and a sheet of the most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fastcifar.runs.plots import literal, make_figure, save_figure

MAX_NAMED_CLASSES = 40
"""With more classes the matrix has neither names nor numbers: they would lie over each other."""
COLUMNS = 8


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
    rows = max(1, -(-len(mistakes) // COLUMNS))
    figure, axes = make_figure(rows, 1.6 * COLUMNS, 1.95 * rows + 0.5, COLUMNS)
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
