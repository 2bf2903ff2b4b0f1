"""Executors carry out plans on images on the device, a block of steps at a time.

`TorchExecutor` and `DaliExecutor` differ in how they make a block and deliver the same images for the same plan, within
rounding. The training loop asks for the blocks of all epochs to come, so that there is no gap between two epochs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastcifar.augment.block import Block
from fastcifar.augment.images import DeviceImages, reflect
from fastcifar.augment.plan import EpochPlan

BYTES_PER_IMAGE = 32 * 32 * 3 * (1 + 4 + 4 + 2 + 2)
"""Device memory that making a block takes per image: uint8, two fp32 copies, and the block itself twice in 16 bits."""


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
