"""A block: the augmented images of several consecutive steps, made at once, so that a step only reads its rows.

Shapes: M images of the block, N steps, B images of a step, C = 3 channels, S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.augment.images import DeviceImages, upload
from fastcifar.augment.plan import EpochPlan


@dataclass(frozen=True)
class Draws:
    """Augmented images that are not made yet: what was drawn for each of them."""

    source: DeviceImages
    table: Tensor  # [M, 6] int32 on the device: the fields of EpochPlan, in their order
    cutout_px: int

    @classmethod
    def of(cls, plan: EpochPlan, source: DeviceImages, cutout_px: int) -> Draws:
        """Those of all steps of a plan, copied to the device without a wait."""
        columns = [getattr(plan, name).flatten() for name in plan.__dataclass_fields__]
        return cls(source, upload(torch.stack(columns, 1).int(), source.padded.device), cutout_px)

    @property
    def size_px(self) -> int:
        """Height and width of the images: they are whole."""
        return self.source.padded.shape[1] - 2 * self.source.pad_px

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.source, self.table[part], self.cutout_px)

    def make(self) -> Tensor:
        """The images [M, H, W, C] in the compute dtype."""
        images, size = self.source, self.size_px
        index, offset_y, offset_x, mirror, cutout_y, cutout_x = self.table.T.long()  # [M] each
        ascending = torch.arange(size, device=self.table.device)
        rows = offset_y[:, None] + ascending  # [M, H]
        cols = offset_x[:, None] + torch.where(mirror[:, None] != 0, size - 1 - ascending, ascending)
        pixels = images.padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]  # [M, H, W, C] u8
        return blank(images.normalize(pixels), cutout_y, cutout_x, self.cutout_px)


@dataclass(frozen=True)
class Block:
    """Images of some steps, in the compute dtype and the order in which they were made; or their draws alone."""

    images: Tensor | Draws  # [M, S, S, C], so that a batch seen as [B, C, S, S] is channels_last
    labels: Tensor  # [M] int64
    rows: Tensor | None  # [N, B] int64: the images of each step; None: they lie in the order of the steps
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    @property
    def size_px(self) -> int:
        """Height and width of the images."""
        return self.images.size_px if isinstance(self.images, Draws) else self.images.shape[1]

    @property
    def content(self) -> Tensor:
        """The images, or the table of their draws."""
        return self.images.table if isinstance(self.images, Draws) else self.images

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """x [B, C, S, S] channels_last and y [B] of a step. A view where the images lie in order, else a copy."""
        size = len(self.labels) // self.num_steps
        part = slice(step * size, (step + 1) * size)
        if isinstance(self.images, Draws):
            return self.images[part].make().permute(0, 3, 1, 2), self.labels[part]
        if self.rows is None:
            return self.images[part].permute(0, 3, 1, 2), self.labels[part]
        rows = self.rows[step]
        return self.images.index_select(0, rows).permute(0, 3, 1, 2), self.labels.index_select(0, rows)


def blank(x: Tensor, cutout_y: Tensor, cutout_x: Tensor, cutout_px: int) -> Tensor:
    """Cutout (DeVries and Taylor 2017, arXiv:1708.04552): x [M, H, W, C] with a square around (cutout_y, cutout_x) [M]
    set to 0, the mean colour, cut off at the border; x itself for a square of 0 pixels."""
    if not cutout_px:
        return x
    place = torch.arange(x.shape[1], device=x.device) + cutout_px // 2
    in_y = (place - cutout_y[:, None] >= 0) & (place - cutout_y[:, None] < cutout_px)
    in_x = (place - cutout_x[:, None] >= 0) & (place - cutout_x[:, None] < cutout_px)
    return x.masked_fill((in_y[:, :, None] & in_x[:, None, :])[..., None], 0)


def shrink(x: Tensor, size_px: int) -> Tensor:
    """[M, C, H, W] -> [M, C, S, S] by bilinear interpolation, channels_last; x itself when the size is the same."""
    if size_px == x.shape[-1]:
        return x
    small = F.interpolate(x.float(), size=(size_px, size_px), mode="bilinear", align_corners=False)
    return small.to(x.dtype).contiguous(memory_format=torch.channels_last)
