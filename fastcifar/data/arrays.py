"""Arrays of the caller -> `Dataset`: any small images, grey or in colour, with any number of classes.

The networks read 32x32 images in colour: other sizes are resized and grey images get three equal channels.

Letters: N images, H x W pixels, C channels (1 or 3), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.cifar10 import is_cifar10
from fastcifar.data.dataset import Dataset, channel_mean_std, dataset_digest
from fastcifar.data.errors import DataError
from fastcifar.data.raw import RawData, check_raw

SMALLEST_PX, LARGEST_PX = 24, 64


def dataset_from_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    test_images: ArrayLike,
    test_labels: ArrayLike,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """The data set of uint8 images [N, H, W, C] or [N, H, W] and integer labels [N] in 0..K-1, checked.

    Args:
        images: training images, 24 to 64 pixels high and wide, 1 or 3 channels; torch tensors on the CPU, too.
        classes: names of the classes; by default "0", "1", ...
        name: what the record calls the data set, unless the images are those of CIFAR-10.

    Raises:
        DataError: an array has another dtype, shape or range.
    """
    y_train, y_test = _labels(labels, "labels"), _labels(test_labels, "test labels")
    count = 1 + int(y_train.max(initial=0))
    if count > max(1, len(y_train)):
        raise DataError(f"labels: a label is {count - 1}; expected 0..K-1 with images of each class")
    names = tuple(classes) if classes is not None else tuple(str(label) for label in range(count))
    raw = RawData(names, to_rgb_32(images, "images"), y_train, to_rgb_32(test_images, "test images"), y_test)
    raw = check_raw(Path(name), raw)
    mean, std = channel_mean_std(raw.x_train)
    arrays = raw[1:5]
    name = "cifar10" if is_cifar10(raw) else name
    return Dataset(name, raw.classes, *arrays, mean=mean, std=std, digest=dataset_digest(raw.classes, arrays))


def to_rgb_32(images: ArrayLike, what: str = "images") -> NDArray[np.uint8]:
    """uint8 images [N, H, W, C] or [N, H, W] -> [N, 32, 32, 3], resized where they are larger or smaller.

    Resizing is Pillow's box filter, as `fastcifar predict` does it. Raises DataError for another dtype or shape.
    """
    array: NDArray[Any] = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{what}: {array.dtype} {list(array.shape)}; expected uint8 [N, H, W, C] with 1 or 3 channels")
    height, width = array.shape[1:3]
    if not all(SMALLEST_PX <= size <= LARGEST_PX for size in (height, width)):
        raise DataError(f"{what}: {height}x{width} pixels; expected {SMALLEST_PX} to {LARGEST_PX}: resize them")
    if array.shape[3] == 1:
        array = array.repeat(3, axis=3)
    if (height, width) != (32, 32):
        from PIL import Image

        resized = np.empty((len(array), 32, 32, 3), np.uint8)
        for row, image in enumerate(array):
            small = Image.fromarray(np.ascontiguousarray(image)).resize((32, 32), Image.Resampling.BOX)
            resized[row] = np.asarray(small)
        array = resized
    return np.ascontiguousarray(array)


def _labels(labels: ArrayLike, what: str) -> NDArray[np.int64]:
    array: NDArray[Any] = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DataError(f"{what}: {array.dtype} {list(array.shape)}; expected integers [N]")
    if array.size and int(array.max()) >= 1 << 31:
        raise DataError(f"{what}: a label is {array.max()}; expected 0..K-1")
    return array.astype(np.int64)
