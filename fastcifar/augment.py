"""Augmentation as a plan and an executor: every random draw of an epoch is made first, then someone carries it out.

Shapes: N images, S steps of an epoch, B images of a step, C = 3 channels, H W = 32 pixels, P pixels of padding.

The plan is drawn by one counter-based generator keyed by (seed, epoch): an epoch's draws depend on nothing that
happened before, so a resumed run, another executor or another number of processes sees the same images.
Within a batch the order of images is free; the plan sorts each batch by (crop, mirror), so that images which share
both lie side by side. The DALI executor hands such a group over as one sequence; the torch executor does not care.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.config import Config

FIRST_SIDE = -1  # key of the draw that outlives an epoch; epochs count from 0


@dataclass(frozen=True)
class EpochPlan:
    """All random draws of one epoch. Row s is step s; images of a step are sorted by (crop, mirror)."""

    index: Tensor  # [S, B] int64, which image
    offset_y: Tensor  # [S, B] int64 in 0..2P, first row of the crop in the padded image
    offset_x: Tensor  # [S, B] int64 in 0..2P
    mirror: Tensor  # [S, B] bool, crop first, then mirror left to right
    cutout_y: Tensor  # [S, B] int64 in 0..H-1, centre of the blanked square
    cutout_x: Tensor  # [S, B] int64

    def __len__(self) -> int:
        return len(self.index)

    def map(self, change) -> EpochPlan:
        """The same plan with `change` applied to each of its tensors."""
        return EpochPlan(*(change(getattr(self, name)) for name in self.__dataclass_fields__))

    def steps(self, first: int, last: int) -> EpochPlan:
        """Only the steps from `first` up to `last`: a resumed epoch, or a fraction of one."""
        return self.map(lambda t: t[first:last])

    def part(self, rank: int, world: int) -> EpochPlan:
        """The share of one of `world` processes: every world-th image of each step. Together they are the step."""
        return self.map(lambda t: t[:, rank::world])


def _generator(seed: int, epoch: int) -> np.random.Generator:
    """Counter-based generator of an epoch's draws: neighbouring seeds and epochs share nothing (Philox, 2011)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch + 1,))))


def draw_plan(config: Config, num_images: int, epoch: int) -> EpochPlan:
    """Draws an epoch on the CPU: each image at most once, and exactly once when the batch size divides N.

    numpy draws, not torch: 2 ms for 50,000 images, while torch's sort took 4 to 200 ms on a busy machine.
    """
    batch = min(config.batch_size, num_images)
    steps = num_images // batch  # the rest of a ragged epoch is left out, other images in each epoch
    shape, gen = (steps, batch), _generator(config.seed, epoch)
    index = gen.permutation(num_images)[: steps * batch].reshape(shape)
    places = 2 * config.crop_pad_px + 1
    offset_y, offset_x = gen.integers(places, size=(2, *shape))
    mirror = gen.integers(2, size=shape, dtype=np.uint8)
    cutout_y, cutout_x = gen.integers(32, size=(2, *shape))
    if config.mirror == "alternating":  # airbench (Jordan 2024): no image is seen twice running from one side
        first_side = _generator(config.seed, FIRST_SIDE).integers(2, size=num_images, dtype=np.uint8)
        mirror = first_side[index] ^ np.uint8(epoch % 2)
    elif config.mirror == "none":
        mirror = np.zeros_like(mirror)
    code = ((offset_y * places + offset_x) * 2 + mirror).astype(np.uint16)
    order = code.argsort(axis=1, kind="stable")
    draws = (index, offset_y, offset_x, mirror.astype(bool), cutout_y, cutout_x)
    return EpochPlan(*(torch.from_numpy(np.take_along_axis(d, order, axis=1)) for d in draws))


class Executor(Protocol):
    """Carries out plans over images that lie on the device."""

    def epoch(self, plan: EpochPlan, side_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields per step x [B, 3, side, side] channels_last in the compute dtype, and y [B] int64, on the device."""
        ...


@dataclass(frozen=True)
class DeviceData:
    """Training images as they lie on the device, reflect-padded once so that a crop is only a place to read from."""

    padded: Tensor  # [N, H+2P, W+2P, C] uint8
    labels: Tensor  # [N] int64
    mean: Tensor  # [C] f32, in 0..255
    inv_std: Tensor  # [C] f32
    pad_px: int
    dtype: torch.dtype  # of the batches

    def normalize(self, pixels: Tensor) -> Tensor:
        """[..., C] uint8 -> [..., C] in the compute dtype: one fused multiply-add in fp32, then the cast."""
        return torch.addcmul(-self.mean * self.inv_std, pixels.float(), self.inv_std).to(self.dtype)


def to_device(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pad_px: int,
    device: torch.device,
    dtype: torch.dtype,
) -> DeviceData:
    """Copies uint8 images [N, 32, 32, 3] to the device, once, and pads them there. mean and std are in [0, 1]."""
    pixels = torch.as_tensor(images).to(device)
    size = pixels.shape[1]
    reflected = torch.arange(-pad_px, size + pad_px, device=device).abs()
    reflected = torch.where(reflected >= size, 2 * (size - 1) - reflected, reflected)
    padded = pixels[:, reflected][:, :, reflected].contiguous() if pad_px else pixels
    return DeviceData(
        padded=padded,
        labels=torch.as_tensor(labels).to(device),
        mean=torch.tensor(mean, device=device) * 255,
        inv_std=1 / (torch.tensor(std, device=device) * 255),
        pad_px=pad_px,
        dtype=dtype,
    )


class TorchExecutor:
    """The plan in plain torch operations, on any device; the reference for every other executor."""

    def __init__(self, data: DeviceData, cutout_px: int = 0) -> None:
        self.data, self.cutout_px = data, cutout_px

    def epoch(self, plan: EpochPlan, side_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
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
            yield finish(data.normalize(pixels), plan, s, self.cutout_px, side_px), data.labels[plan.index[s]]


def finish(x: Tensor, plan: EpochPlan, step: int, cutout_px: int, side_px: int) -> Tensor:
    """What both executors leave to torch. x [B, H, W, C] -> [B, C, side, side] channels_last, same dtype.

    Cutout (DeVries and Taylor 2017) blanks to 0, the mean colour; the square is cut off at the border of the image.
    """
    size = x.shape[1]
    if cutout_px:
        place = torch.arange(size, device=x.device) + cutout_px // 2
        in_y = (place - plan.cutout_y[step, :, None] >= 0) & (place - plan.cutout_y[step, :, None] < cutout_px)
        in_x = (place - plan.cutout_x[step, :, None] >= 0) & (place - plan.cutout_x[step, :, None] < cutout_px)
        x = x.masked_fill((in_y[:, :, None] & in_x[:, None, :])[..., None], 0)
    x = x.permute(0, 3, 1, 2)  # [B, C, H, W], channels_last by strides, no copy
    return shrink(x, side_px)


def shrink(x: Tensor, side_px: int) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side] by bilinear interpolation, channels_last; x itself when nothing changes."""
    if side_px == x.shape[-1]:
        return x
    small = F.interpolate(x.float(), size=(side_px, side_px), mode="bilinear", align_corners=False)
    return small.to(x.dtype).contiguous(memory_format=torch.channels_last)


def test_batches(data: DeviceData, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Every image in order: x [B, 3, 32, 32] channels_last, y [B], and how many rows are real.

    The last batch is filled up by repeating images, so that all batches have one shape (one compiled graph) and no
    test image is dropped.
    """
    num = len(data.labels)
    for start in range(0, num, batch_size):
        rows = torch.arange(start, start + batch_size, device=data.labels.device) % num
        x = data.normalize(data.padded[rows]).permute(0, 3, 1, 2)  # [B, C, H, W] channels_last by strides
        yield x, data.labels[rows], min(batch_size, num - start)


def side_at(config: Config, epoch: int) -> int:
    """Image side in pixels during an epoch: low in the epochs that end before `low_res_until`."""
    return config.low_res_px if epoch + 1 <= config.at(config.low_res_until) + 1e-9 else 32
