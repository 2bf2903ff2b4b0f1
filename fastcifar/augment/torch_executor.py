"""Carries out plans in plain torch operations, on any device: the reference for every other executor.

Shapes: M images of a block, C = 3 channels, H W = 32 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.augment.block import Block, finish
from fastcifar.augment.executor import Executor
from fastcifar.augment.images import upload
from fastcifar.augment.plan import EpochPlan


class TorchExecutor(Executor):
    """Executor in plain torch operations."""

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, its images in the order of the steps."""
        images, device, flat = self.images, self.images.padded.device, plan.map(Tensor.flatten)  # [M] each
        index, offset_y, offset_x, mirror = (
            upload(draws, device) for draws in (flat.index, flat.offset_y, flat.offset_x, flat.mirror)
        )
        size = images.padded.shape[1] - 2 * images.pad_px
        ascending = torch.arange(size, device=device)
        rows = offset_y[:, None] + ascending  # [M, H]
        cols = offset_x[:, None] + torch.where(mirror[:, None], size - 1 - ascending, ascending)
        pixels = images.padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]  # [M, H, W, C] u8
        x = finish(images.normalize(pixels), flat.cutout_y, flat.cutout_x, self.cutout_px, size_px)
        return Block(x, images.labels[index], rows=None, num_steps=len(plan))
