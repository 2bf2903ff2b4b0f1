"""Carries out plans in plain torch operations, on any device: the reference for every other executor.

Shapes: M images of a block, C = 3 channels, H W = 32 pixels.
"""

from __future__ import annotations

from fastcifar.augment.block import Block, Draws, shrink
from fastcifar.augment.executor import Executor
from fastcifar.augment.plan import EpochPlan


class TorchExecutor(Executor):
    """Executor in plain torch operations."""

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, its images in the order of the steps."""
        draws = Draws.of(plan, self.images, self.cutout_px)
        alone = self.draws_from_px is not None and size_px >= self.draws_from_px
        images = draws if alone else shrink(draws.make().permute(0, 3, 1, 2), size_px).permute(0, 2, 3, 1)
        return Block(images, self.images.labels[draws.table[:, 0]], rows=None, num_steps=len(plan))
