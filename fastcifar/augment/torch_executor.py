"""Carries out plans in plain torch operations, on any device: the reference for every other executor.

Shapes: M images of a block, C = 3 channels, H W = 32 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcifar.augment.block import Block, finish
from fastcifar.augment.executor import Executor, upload
from fastcifar.augment.plan import EpochPlan


class TorchExecutor(Executor):
    """Executor in plain torch operations."""

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, its images in the order of the steps."""
        images, num_steps = self.images, len(plan)
        plan = upload(plan.map(Tensor.flatten), images.padded.device)  # [M] each
        size = images.padded.shape[1] - 2 * images.pad_px
        ascending = torch.arange(size, device=images.padded.device)
        rows = plan.offset_y[:, None] + ascending  # [M, H]
        cols = plan.offset_x[:, None] + torch.where(plan.mirror[:, None], size - 1 - ascending, ascending)
        pixels = images.padded[plan.index[:, None, None], rows[:, :, None], cols[:, None, :]]  # [M, H, W, C] u8
        x = finish(images.normalize(pixels), plan.cutout_y, plan.cutout_x, self.cutout_px, size_px)
        return Block(x, images.labels[plan.index], rows=None, num_steps=num_steps)
