"""A block: the augmented images of several consecutive steps, made at once, so that a step only reads its rows.

Shapes: M images of the block, N steps, B images of a step, C = 3 channels, S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.augment.images import upload


@dataclass(frozen=True)
class Block:
    """Images of some steps, in the compute dtype and the order in which they were made."""

    images: Tensor  # [M, S, S, C], so that a batch seen as [B, C, S, S] is channels_last
    labels: Tensor  # [M] int64
    rows: Tensor | None  # [N, B] int64: the images of each step; None: they lie in the order of the steps
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """x [B, C, S, S] channels_last and y [B] of a step. A view where the images lie in order, else a copy."""
        if self.rows is None:
            size = len(self.labels) // self.num_steps
            part = slice(step * size, (step + 1) * size)
            return self.images[part].permute(0, 3, 1, 2), self.labels[part]
        rows = self.rows[step]
        return self.images.index_select(0, rows).permute(0, 3, 1, 2), self.labels.index_select(0, rows)


def finish(x: Tensor, cutout_y: Tensor, cutout_x: Tensor, cutout_px: int, size_px: int) -> Tensor:
    """Cutout and low resolution, which both executors leave to torch: [M, H, W, C] -> [M, S, S, C], same dtype.

    Cutout (DeVries and Taylor 2017, arXiv:1708.04552) sets a square around (cutout_y, cutout_x) [M], on the CPU, to 0,
    the mean colour, cut off at the border.
    """
    size = x.shape[1]
    if cutout_px:
        cutout_y, cutout_x = upload(cutout_y, x.device), upload(cutout_x, x.device)
        place = torch.arange(size, device=x.device) + cutout_px // 2
        in_y = (place - cutout_y[:, None] >= 0) & (place - cutout_y[:, None] < cutout_px)
        in_x = (place - cutout_x[:, None] >= 0) & (place - cutout_x[:, None] < cutout_px)
        x = x.masked_fill((in_y[:, :, None] & in_x[:, None, :])[..., None], 0)
    return shrink(x.permute(0, 3, 1, 2), size_px).permute(0, 2, 3, 1)


def shrink(x: Tensor, size_px: int) -> Tensor:
    """[M, C, H, W] -> [M, C, S, S] by bilinear interpolation, channels_last; x itself when the size is the same."""
    if size_px == x.shape[-1]:
        return x
    small = F.interpolate(x.float(), size=(size_px, size_px), mode="bilinear", align_corners=False)
    return small.to(x.dtype).contiguous(memory_format=torch.channels_last)
