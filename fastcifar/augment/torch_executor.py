"""Carries out a plan in plain torch operations, on any device: the reference for every other executor.

Shapes: B images of a step, C = 3 channels, H W = 32 pixels, S x S pixels of a delivered image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.augment.images import DeviceImages
from fastcifar.augment.plan import EpochPlan


class Executor(Protocol):
    """Carries out plans on images on the device."""

    def epoch(self, plan: EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields per step x [B, 3, S, S] channels_last in the compute dtype, and y [B] int64, on the device."""
        ...


class TorchExecutor:
    """Executor in plain torch operations."""

    def __init__(self, data: DeviceImages, cutout_px: int = 0) -> None:
        self.data, self.cutout_px = data, cutout_px

    def epoch(self, plan: EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        data = self.data
        device = data.padded.device
        if device.type == "cuda":  # from pinned memory the upload does not wait for the training in progress
            plan = plan.map(Tensor.pin_memory)
        plan = plan.map(lambda t: t.to(device, non_blocking=True))
        size = data.padded.shape[1] - 2 * data.pad_px
        ascending = torch.arange(size, device=device)
        for s in range(len(plan)):
            rows = plan.offset_y[s, :, None] + ascending  # [B, H]
            cols = plan.offset_x[s, :, None] + torch.where(plan.mirror[s, :, None], size - 1 - ascending, ascending)
            pixels = data.padded[plan.index[s, :, None, None], rows[:, :, None], cols[:, None, :]]  # [B, H, W, C] u8
            yield finish(data.normalize(pixels), plan, s, self.cutout_px, size_px), data.labels[plan.index[s]]


def finish(x: Tensor, plan: EpochPlan, step: int, cutout_px: int, size_px: int) -> Tensor:
    """Cutout, layout and low resolution, which both executors leave to torch. x [B, H, W, C] -> [B, C, S, S].

    Cutout (DeVries and Taylor 2017, arXiv:1708.04552) sets a square to 0, the mean colour, cut off at the border.
    """
    size = x.shape[1]
    if cutout_px:
        place = torch.arange(size, device=x.device) + cutout_px // 2
        in_y = (place - plan.cutout_y[step, :, None] >= 0) & (place - plan.cutout_y[step, :, None] < cutout_px)
        in_x = (place - plan.cutout_x[step, :, None] >= 0) & (place - plan.cutout_x[step, :, None] < cutout_px)
        x = x.masked_fill((in_y[:, :, None] & in_x[:, None, :])[..., None], 0)
    x = x.permute(0, 3, 1, 2)  # [B, C, H, W], channels_last by strides, no copy
    return shrink(x, size_px)


def shrink(x: Tensor, size_px: int) -> Tensor:
    """[B, C, H, W] -> [B, C, S, S] by bilinear interpolation, channels_last; x itself when the size is the same."""
    if size_px == x.shape[-1]:
        return x
    small = F.interpolate(x.float(), size=(size_px, size_px), mode="bilinear", align_corners=False)
    return small.to(x.dtype).contiguous(memory_format=torch.channels_last)
