"""Accuracy of any model over any images, plain or averaged over mirrored (and shifted) views."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[[Tensor], Tensor]


def flip(model: Model, x: Tensor) -> Tensor:
    """Mean logits of an image and its mirror. x [B, C, H, W] -> [B, K]."""
    return (model(x) + model(x.flip(-1))) / 2


def flip_shift(model: Model, x: Tensor) -> Tensor:
    """Half `flip` of the image, half of the image shifted by one pixel up-left and down-right: six views (airbench)."""
    side = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    views = (padded[..., d : d + side, d : d + side] for d in (0, 2))
    shifted = (flip(model, v.contiguous(memory_format=torch.channels_last)) for v in views)  # no recompile
    return flip(model, x) / 2 + sum(shifted) / 4


VIEWS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "none": lambda model, x: model(x),
    "flip": flip,
    "flip-shift": flip_shift,
}


@torch.no_grad()
def count_right(model: Model, batches: Iterable[tuple[Tensor, Tensor, int]], tta: str = "none") -> Tensor:
    """How many images have their largest logit at the label, int64 scalar on the device: no wait, no copy.

    batches: x [B, 3, 32, 32], y [B], and how many rows of the batch count. The model must be in eval mode.
    """
    counts = [(VIEWS[tta](model, x).argmax(1) == y)[:real].sum() for x, y, real in batches]
    return torch.stack(counts).sum()
