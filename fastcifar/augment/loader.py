"""The augmenting loader alone, for other people's training loops.

    loader = fastcifar.Loader(images, labels, batch_size=500, crop_pad_px=2)
    for epoch in range(10):
        for x, y in loader:  # augmented, normalised, on the device
            ...

The images lie on the device as uint8. Each iteration over the loader is the next epoch.

Letters: N images, B images of a batch, C = 3 channels.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastcifar.augment.executor import make_executor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw
from fastcifar.config.config import Augment
from fastcifar.data.checks import check_labels
from fastcifar.data.dataset import channel_mean_std
from fastcifar.data.pixels import to_rgb_32


class Loader:
    """Yields x [B, 3, 32, 32] channels_last in `dtype` and y [B] int64, on `device`, in another order each epoch.

    With train=False: all images, in their order, without augmentation; the last batch may be smaller.

    Args:
        images: as `Dataset.from_arrays` takes them; they become uint8 [N, 32, 32, 3].
        labels: integers [N].
        batch_size: B; the rest of an epoch that fills no batch is left out, other images each time.
        crop_pad_px: as the flag of this name, as are the next two.
        mirror: which images are mirrored.
        cutout_px: size of the blanked square; 0: none.
        device: where the batches lie.
        dtype: precision of x.
        executor: "torch", "dali", or "auto": torch, the faster one wherever both were measured.
        mean: per channel in [0, 1]; by default that of the images.
        std: likewise.
        seed: of all draws. Equal seeds give equal epochs, with either executor.
        train: False for evaluation. Give it the mean and std of the training images then.
        rank: which of the processes this is. In training they share each epoch: every process gets B other images of a
            step. With train=False it gets every world-th image, so some may get one more than others.
        world: number of processes.

    Raises:
        ValueError: the arrays have another dtype or shape.
        DaliUnavailable: DALI is asked for and missing.
    """

    def __init__(
        self,
        images: ArrayLike,
        labels: ArrayLike,
        batch_size: int,
        *,
        crop_pad_px: int = 4,
        mirror: Literal["alternating", "random", "none"] = "alternating",
        cutout_px: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        executor: Literal["auto", "torch", "dali"] = "torch",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
        train: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be above 0")
        if executor not in ("auto", "torch", "dali"):
            raise ValueError(f"executor is {executor!r}; known: auto, torch, dali")
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank} of {world} processes; it must be in 0..{world - 1}")
        self.train = train
        self.rank, self.world = rank, world
        self.augment = Augment(crop_pad_px=crop_pad_px if train else 0, mirror=mirror, cutout_px=cutout_px)
        self.batch_size = batch_size
        self.seed, self.epoch = seed, 0
        self.device, self.dtype = torch.device(device), dtype
        self.kind = executor
        self.mean, self.std = mean, std
        self.replace(images, labels)

    def replace(self, images: ArrayLike, labels: ArrayLike) -> None:
        """Takes other images from the next epoch on. mean and std stay those of the first ones."""
        pixels, targets = to_rgb_32(images), check_labels("Loader", labels, only_numbers=True)
        if len(targets) != len(pixels) or not len(pixels):
            raise ValueError(f"{len(pixels)} images and {len(targets)} labels; expected one label per image, and some")
        if self.train and len(pixels) < self.world:
            raise ValueError(f"{len(pixels)} images for {self.world} processes; each needs one at least")
        if self.mean is None or self.std is None:
            mean, std = channel_mean_std(pixels)
            self.mean, self.std = self.mean or mean, self.std or std
        self._pixels, self._targets = pixels, targets
        pad_px = self.augment.crop_pad_px
        on_device = to_device(pixels, targets, self.mean, self.std, pad_px, self.device, self.dtype)
        self.executor = make_executor(self.kind, on_device, self.augment.cutout_px)

    def keep(self, chosen: ArrayLike) -> None:
        """Trains on some of the present images only, from the next epoch on: a mask bool [N] or indices [M]."""
        rows: Any = np.asarray(chosen)
        self.replace(self._pixels[rows], self._targets[rows])

    @property
    def images(self) -> Tensor:
        """All images as they lie on the device, without augmentation: uint8 [N, 32, 32, 3]."""
        padded, pad = self.executor.images.padded, self.executor.images.pad_px
        return padded[:, pad : padded.shape[1] - pad, pad : padded.shape[2] - pad]

    @property
    def labels(self) -> Tensor:
        """The labels on the device: int64 [N]."""
        return self.executor.images.labels

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images [B, H, W, 3] on the device -> x [B, 3, H, W] channels_last, as the loader yields them."""
        return self.executor.images.normalize(images).permute(0, 3, 1, 2)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that epoch, as after `epoch` others: for a resumed loop."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        if not self.train:
            return -(-len(range(self.rank, len(self._targets), self.world)) // self.batch_size)
        return max(1, len(self._targets) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.train:
            return self._in_order()
        step = min(self.batch_size, len(self._targets) // self.world) * self.world  # equal parts for all processes
        plan = draw(self.augment, step, self.seed, len(self._targets), self.epoch)
        self.epoch += 1
        return self.executor.epoch(plan.part(self.rank, self.world))

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        mine = slice(self.rank, None, self.world)
        if self.rank >= len(self.labels):
            return
        for images, labels in zip(
            self.images[mine].split(self.batch_size), self.labels[mine].split(self.batch_size), strict=True
        ):
            yield self.normalize(images), labels
