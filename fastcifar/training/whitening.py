"""The images that the stem's whitening filters are made from. Shapes: N images, C = 3 channels, H W = 32 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.data.dataset import Dataset
from fastcifar.models.resnet9 import ResNet9

IMAGES, IMAGES_ON_CARD = 5000, 1000
"""Training images that the filters are made from. On a card fewer, as they are made in the timed part of every run."""


def stem_filters(model: nn.Module, dataset: Dataset, images: DeviceImages) -> Tensor | None:
    """Whitening filters [C0, 3, 2, 2] of the training images, the same for every seed; None for a network without them.

    On a card from the images that lie there, in fp32, else in fp64.
    """
    if not isinstance(model, ResNet9):
        return None
    if images.padded.is_cuda:
        return filters_of_device_images(model, images)
    rows = _rows(len(dataset.y_train), IMAGES)
    pixels = torch.as_tensor(dataset.x_train[rows.numpy()]).to(images.padded.device).float() / 255
    mean, std = (torch.tensor(v, device=pixels.device) for v in (dataset.mean, dataset.std))
    return model.whitening_filters(((pixels - mean) / std).permute(0, 3, 1, 2))


def filters_of_device_images(model: ResNet9, images: DeviceImages) -> Tensor:
    """The filters in fp32, from `IMAGES_ON_CARD` of the images where they lie."""
    rows, size = _rows(len(images.labels), IMAGES_ON_CARD), images.padded.shape[1] - 2 * images.pad_px
    inner = slice(images.pad_px, images.pad_px + size)
    pixels = images.padded[rows.to(images.padded.device), inner, inner]  # [N, H, W, C] u8
    x = torch.addcmul(-images.mean * images.inv_std, pixels.float(), images.inv_std)
    return model.whitening_filters(x.permute(0, 3, 1, 2), dtype=torch.float32)


def _rows(num_images: int, most: int) -> Tensor:
    """Some images, of all classes also where they lie sorted."""
    return torch.linspace(0, num_images - 1, min(most, num_images)).long()
