"""Images on the device: uint8, copied and padded once, and normalised when a batch is taken.

Both executors and the evaluation read from here. Shapes: N images, B images of a batch, C = 3 channels, H W = 32
pixels, P pixels of padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class DeviceImages:
    """Images and labels on the device, reflect-padded once, so that a crop only reads from another place."""

    padded: Tensor  # [N, H+2P, W+2P, C] uint8
    labels: Tensor  # [N] int64
    mean: Tensor  # [C] f32, in 0..255
    inv_std: Tensor  # [C] f32
    pad_px: int
    dtype: torch.dtype  # of the batches

    def normalize(self, pixels: Tensor) -> Tensor:
        """[..., C] uint8 -> [..., C] in the compute dtype: one fused multiply-add in fp32, then the cast."""
        return torch.addcmul(-self.mean * self.inv_std, pixels.float(), self.inv_std).to(self.dtype)

    def batch(self, rows: Tensor) -> Tensor:
        """x [B, C, H, W] channels_last (by strides) of the images `rows` [B], padding included."""
        return self.normalize(self.padded[rows]).permute(0, 3, 1, 2)


def to_device(
    images: NDArray[np.uint8] | Tensor,
    labels: NDArray[np.int64] | Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    pad_px: int,
    device: torch.device,
    dtype: torch.dtype,
    borders: bool = True,
) -> DeviceImages:
    """Copies uint8 images [N, 32, 32, 3] to the device, once, and pads them there. mean and std are in [0, 1].

    borders: False leaves the padding unwritten, for `Executor.fill_borders`.
    """
    return DeviceImages(
        padded=_padded(torch.as_tensor(images).to(device), pad_px, borders),
        labels=torch.as_tensor(labels).to(device),
        mean=torch.tensor(mean, device=device) * 255,
        inv_std=1 / (torch.tensor(std, device=device) * 255),
        pad_px=pad_px,
        dtype=dtype,
    )


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory from which a copy to the device does not wait for the training in progress."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _padded(pixels: Tensor, pad_px: int, borders: bool) -> Tensor:
    """[N, H, W, C] -> [N, H+2P, W+2P, C]."""
    if not pad_px:
        return pixels
    num, height, width, channels = pixels.shape
    padded = pixels.new_empty(num, height + 2 * pad_px, width + 2 * pad_px, channels)
    padded[:, pad_px : pad_px + height, pad_px : pad_px + width] = pixels
    if borders:
        reflect(padded, pad_px)
    return padded


def reflect(padded: Tensor, pad_px: int) -> None:
    """Fills the borders of [N, H+2P, W+2P, C] from the images inside, in place.

    Strip by strip: gathering every pixel takes several times as long.
    """
    for dim in (1, 2):
        first, last = pad_px, padded.shape[dim] - pad_px - 1
        for i in range(1, pad_px + 1):
            padded.select(dim, first - i).copy_(padded.select(dim, first + i))
            padded.select(dim, last + i).copy_(padded.select(dim, last - i))


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, copied there without a wait."""
    return pinned(tensor, device).to(device, non_blocking=True)
