"""The augmentation plan: every random draw of an epoch, made before an executor carries it out.

Shapes: N images, S steps of an epoch, B images of a step, C = 3 channels, H W = 32 pixels, P pixels of padding.

The plan is drawn by one counter-based generator keyed by (seed, epoch): an epoch's draws depend on nothing that
happened before, so a resumed run, another executor or another number of processes sees the same images.
Each batch is sorted by (crop, mirror). No executor needs that: it fixes the order in which a batch is summed up, and so
the bits of every result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcifar.augment.balanced import interleaved
from fastcifar.config.config import Augment, Config

FIRST_MIRROR = -1  # key of the draw that holds for the whole run; epochs count from 0


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

    def map(self, change: Callable[[Tensor], Tensor]) -> EpochPlan:
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


def draw_plan(config: Config, num_images: int, epoch: int, labels: np.ndarray | None = None) -> EpochPlan:
    """The random draws of an epoch under a config; see `draw`."""
    return draw(config.augment, config.optimizer.batch_size, config.seed, num_images, epoch, labels)


def draw(
    augment: Augment, batch_size: int, seed: int, num_images: int, epoch: int, labels: np.ndarray | None = None
) -> EpochPlan:
    """Draws an epoch on the CPU: each image at most once, and exactly once when the batch size divides N.

    labels: [N] int64, which a balanced order needs.
    numpy draws, not torch: 2 ms for 50,000 images, while torch's sort took 4 to 200 ms on a busy machine.
    """
    batch = min(batch_size, num_images)
    steps = num_images // batch  # the rest of a ragged epoch is left out, other images in each epoch
    shape, gen = (steps, batch), _generator(seed, epoch)
    order = gen.permutation(num_images)
    if augment.order == "balanced":
        assert labels is not None
        order = interleaved(order, labels)
    index = order[: steps * batch].reshape(shape)
    places = 2 * augment.crop_pad_px + 1
    offset_y, offset_x = gen.integers(places, size=(2, *shape))
    mirror = gen.integers(2, size=shape, dtype=np.uint8)
    cutout_y, cutout_x = gen.integers(32, size=(2, *shape))
    if augment.mirror == "alternating":  # airbench (Jordan 2024): no image is seen twice running from one side
        first_mirror = _generator(seed, FIRST_MIRROR).integers(2, size=num_images, dtype=np.uint8)
        mirror = first_mirror[index] ^ np.uint8(epoch % 2)
    elif augment.mirror == "none":
        mirror = np.zeros_like(mirror)
    code = ((offset_y * places + offset_x) * 2 + mirror).astype(np.uint16)
    order = code.argsort(axis=1, kind="stable")
    draws = (index, offset_y, offset_x, mirror.astype(bool), cutout_y, cutout_x)
    return EpochPlan(*(torch.from_numpy(np.take_along_axis(d, order, axis=1)) for d in draws))


def image_size(config: Config, epoch: int) -> int:
    """Image height and width in pixels during an epoch: those of the first low-resolution part that it ends in."""
    for size_px, until in zip(config.augment.low_res_px, config.augment.low_res_until, strict=True):
        if epoch + 1 <= config.epoch_of(until) + 1e-9:
            return size_px
    return 32
