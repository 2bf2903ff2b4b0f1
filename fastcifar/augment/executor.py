"""Executors carry out plans on images on the device, a block of steps at a time.

A block holds the augmented images of several consecutive steps, made at once, so that a step only reads its rows.
`TorchExecutor` and `DaliExecutor` differ in how they make a block and deliver the same images for the same plan, within
rounding. The training loop asks for the blocks of all epochs to come, so that there is no gap between two epochs.

Shapes: M images of a block, N steps, B images of a step, C = 3 channels, H = W = 32 pixels, S x S pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.augment.images import DeviceImages, reflect, upload
from fastcifar.augment.plan import EpochPlan

BYTES_PER_IMAGE = 32 * 32 * 3 * (1 + 4 + 4 + 2 + 2)
"""Device memory that making a block takes per image: uint8, two fp32 copies, and the block itself twice in 16 bits."""


def crop_and_mirror(padded: Tensor, index: Tensor, y: Tensor, x: Tensor, mirror: Tensor, size_px: int) -> Tensor:
    """Padded images [N, H+2P, W+2P, C] -> those of `index` [M], cut from row y and column x [M] on: [M, H, W, C].

    mirror: [M], not 0 where the crop is then mirrored left to right.
    """
    ascending = torch.arange(size_px, device=padded.device)
    rows = y[:, None] + ascending  # [M, H]
    cols = x[:, None] + torch.where(mirror[:, None] != 0, size_px - 1 - ascending, ascending)
    return padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]


def cutout(x: Tensor, centre_y: Tensor, centre_x: Tensor, cutout_px: int) -> Tensor:
    """Cutout (DeVries and Taylor 2017, arXiv:1708.04552): x [M, H, W, C] with a square around (centre_y, centre_x) [M]
    set to 0, the mean colour, cut off at the border; x itself for a square of 0 pixels."""
    if not cutout_px:
        return x
    place = torch.arange(x.shape[1], device=x.device) + cutout_px // 2
    in_y = (place - centre_y[:, None] >= 0) & (place - centre_y[:, None] < cutout_px)
    in_x = (place - centre_x[:, None] >= 0) & (place - centre_x[:, None] < cutout_px)
    return x.masked_fill((in_y[:, :, None] & in_x[:, None, :])[..., None], 0)


def shrink(x: Tensor, size_px: int) -> Tensor:
    """[M, H, W, C] -> [M, S, S, C] by bilinear interpolation, for epochs in low resolution; x itself for its size."""
    if size_px == x.shape[1]:
        return x
    small = F.interpolate(x.permute(0, 3, 1, 2).float(), size=(size_px, size_px), mode="bilinear", align_corners=False)
    return small.to(x.dtype).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Draws:
    """Augmented images that are not made yet: what was drawn for each of them."""

    source: DeviceImages
    table: Tensor  # [M, D] int32 on the device: the D fields of EpochPlan, in their order
    cutout_px: int

    @classmethod
    def of(cls, plan: EpochPlan, source: DeviceImages, cutout_px: int) -> Draws:
        """Those of all steps of a plan, copied to the device without a wait."""
        columns = [getattr(plan, name).flatten() for name in plan.__dataclass_fields__]
        return cls(source, upload(torch.stack(columns, 1).int(), source.padded.device), cutout_px)

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.source, self.table[part], self.cutout_px)

    def make(self) -> Tensor:
        """The images [M, H, W, C] in the compute dtype. The operations stand in the order in which a pixel sees them;
        `shrink` follows in epochs of low resolution."""
        index, offset_y, offset_x, mirror, *rest = self.table.T.long()  # [M] each
        x = crop_and_mirror(self.source.padded, index, offset_y, offset_x, mirror, self.source.size_px)
        return self.change(self.source.normalize(x), *rest)

    def change(self, x: Tensor, cutout_y: Tensor, cutout_x: Tensor) -> Tensor:
        """x [M, H, W, C], cropped, mirrored and normalised, after all that both executors do with it by torch.

        The others: [M] int64 each, the fields of EpochPlan from `cutout_y` on.
        """
        return cutout(x, cutout_y, cutout_x, self.cutout_px)


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
        return self.images.source.size_px if isinstance(self.images, Draws) else self.images.shape[1]

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


class Executor(ABC):
    """Makes blocks of augmented images; on a card on a stream of its own, one block ahead of the training.

    max_images: images of a block; by default what a quarter of the card's free memory holds, on a CPU those of a step.
    """

    draws_from_px: int | None = None
    """Image size from which blocks hold draws alone, for a step that makes the images itself. Not with DALI."""

    def __init__(self, images: DeviceImages, cutout_px: int = 0, max_images: int | None = None) -> None:
        self.images, self.cutout_px = images, cutout_px
        device = images.padded.device
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":  # on the training stream a block would queue up behind the training
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.max_images = max_images or self._images_that_fit()

    def _images_that_fit(self) -> int:
        if self.stream is None:
            return 1  # so a step a block: larger blocks leave the CPU's cache
        free, _ = torch.cuda.mem_get_info(self.images.padded.device)
        return int(free // 4 // BYTES_PER_IMAGE)

    def fill_borders(self) -> None:
        """Fills the borders of images that came to the device without them; blocks to come wait for it."""
        reflect(self.images.padded, self.images.pad_px)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.images.padded.device))

    @abstractmethod
    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, queued on the current stream."""

    def blocks(self, plans: Iterable[tuple[EpochPlan, int]]) -> Blocks:
        """Blocks of the steps of (plan, image size in pixels), in order. A block holds steps of one plan only."""
        parts = ((part, size) for plan, size in plans for part in self._split(plan))
        return Blocks(self, parts)

    def epoch(self, plan: EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields per step x [B, 3, S, S] channels_last in the compute dtype, and y [B] int64, on the device."""
        for block in self.blocks([(plan, size_px)]):
            for step in range(len(block)):
                yield block.batch(step)

    def _split(self, plan: EpochPlan) -> Iterator[EpochPlan]:
        steps = max(1, self.max_images // plan.index.shape[1])
        for first in range(0, len(plan), steps):
            yield plan.steps(first, first + steps)


class Blocks:
    """Iterates over blocks; `work_ahead` queues the next one while the device is busy with the last."""

    def __init__(self, executor: Executor, parts: Iterator[tuple[EpochPlan, int]]) -> None:
        self.executor, self.parts = executor, parts
        self.queued: tuple[Block, torch.cuda.Event] | None = None

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> Block:
        if self.executor.stream is None:
            plan, size_px = next(self.parts)
            return self.executor.make(plan, size_px)
        if self.queued is None:
            self.work_ahead()
        if self.queued is None:
            raise StopIteration
        (block, ready), self.queued = self.queued, None
        stream = torch.cuda.current_stream(block.labels.device)
        stream.wait_event(ready)
        for tensor in (block.content, block.labels, block.rows):
            if tensor is not None:
                tensor.record_stream(stream)  # keeps its memory until that stream has read it
        return block

    def work_ahead(self) -> None:
        """Queues the next block on the executor's stream. Does nothing on a CPU, or when one is queued."""
        stream = self.executor.stream
        if stream is None or self.queued is not None:
            return
        for plan, size_px in self.parts:
            with torch.cuda.stream(stream):
                block, ready = self.executor.make(plan, size_px), torch.cuda.Event()
                ready.record(stream)
            self.queued = block, ready
            return


class TorchExecutor(Executor):
    """Executor in plain torch operations, on any device: the reference for every other one."""

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, its images in the order of the steps."""
        draws = Draws.of(plan, self.images, self.cutout_px)
        alone = self.draws_from_px is not None and size_px >= self.draws_from_px
        images = draws if alone else shrink(draws.make(), size_px)
        return Block(images, self.images.labels[draws.table[:, 0]], rows=None, num_steps=len(plan))


def make_executor(kind: str, images: DeviceImages, cutout_px: int) -> Executor:
    """The executor "torch" or "dali". Raises DaliUnavailable."""
    if kind == "dali":
        from fastcifar.augment.dali import DaliExecutor

        return DaliExecutor(images, cutout_px)
    return TorchExecutor(images, cutout_px)
