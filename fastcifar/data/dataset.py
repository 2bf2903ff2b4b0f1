"""`Dataset`: the images and labels in memory that training starts from, and the ways to take parts of them.

`load` makes a Dataset from a source or from the cache; training cuts subsets and validation images here.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes, V validation images.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.errors import DataError
from fastcifar.data.raw import Images, Labels

__all__ = ["Dataset", "channel_mean_std", "dataset_digest", "hold_out", "largest_subset", "take_subset"]

PerChannel = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, C-contiguous. Compare two data sets by their digest."""

    name: str
    """cifar10 (recognised by its content), cifar100 (by its files), synthetic, or the name of the user's file."""
    classes: tuple[str, ...]
    x_train: Images  # uint8 [N, H, W, C]
    y_train: Labels  # int64 [N], 0..K-1
    x_test: Images
    y_test: Labels
    mean: PerChannel
    """Of the training images per channel, for pixels scaled to [0, 1]. A subset keeps the values of the whole set, so
    that networks trained on either see inputs of the same scale."""
    std: PerChannel
    digest: str
    """SHA-256 of the arrays and the class names."""


def take_subset(dataset: Dataset, n_train: int) -> Dataset:
    """Returns the first n_train training images, with classes in equal parts, and at most a fifth as many test images.

    There is at least one test image of each class, where the set has one. mean and std stay those of the whole set.
    Raises DataError if n_train is below K or above `largest_subset(dataset)`.
    """
    k = len(dataset.classes)
    if n_train < k:
        raise DataError(f"subset is {n_train}; use at least {k}, one image of each class")
    train = _rows_in_equal_parts(dataset.y_train, n_train, k)
    if len(train) < n_train:
        raise DataError(f"subset is {n_train}, but with as many images of each class {dataset.name} has "
                        f"{largest_subset(dataset)}; use at most that many")  # fmt: skip
    test = _rows_in_equal_parts(dataset.y_test, max(k, n_train // 5), k)
    return _replace_arrays(
        dataset, dataset.x_train[train], dataset.y_train[train], dataset.x_test[test], dataset.y_test[test]
    )


def largest_subset(dataset: Dataset) -> int:
    """Returns the largest number of training images with equally many of each class."""
    k = len(dataset.classes)
    return int(np.bincount(dataset.y_train, minlength=k).min()) * k


def _rows_in_equal_parts(labels: Labels, n: int, k: int) -> NDArray[np.intp]:
    """Rows of the first n images with equally many of each class, in ascending order, fewer where images are lacking.

    If K does not divide n, the first n mod K classes get one image more.
    """
    rows = [np.flatnonzero(labels == label)[: n // k + (label < n % k)] for label in range(k)]
    return np.sort(np.concatenate(rows))


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Images, Labels]:
    """Returns the data set without its validation images, and those: x_val uint8 [V, H, W, C] and y_val int64 [V].

    The split is random by `seed` and stratified: the same fraction of each class is held out. mean and std stay those
    of the whole set. Raises DataError if a class would have no images on either side.
    """
    random = np.random.default_rng([seed, 1])
    is_validation = np.zeros(len(dataset.y_train), bool)
    for label, name in enumerate(dataset.classes):
        rows = np.flatnonzero(dataset.y_train == label)
        count = round(fraction * len(rows))
        if not 0 < count < len(rows):
            raise DataError(f"val_split {fraction} takes {count} of the {len(rows)} images of class {name!r}; use a "
                            "fraction that leaves images both for training and for validation")  # fmt: skip
        is_validation[random.permutation(rows)[:count]] = True
    x, y = dataset.x_train, dataset.y_train
    rest = _replace_arrays(dataset, x[~is_validation], y[~is_validation], dataset.x_test, dataset.y_test)
    return rest, x[is_validation], y[is_validation]


def _replace_arrays(dataset: Dataset, x_train: Images, y_train: Labels, x_test: Images, y_test: Labels) -> Dataset:
    digest = dataset_digest(dataset.classes, (x_train, y_train, x_test, y_test))
    return replace(dataset, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, digest=digest)


def dataset_digest(classes: tuple[str, ...], arrays: Sequence[NDArray[Any]]) -> str:
    """Returns the SHA-256 of the class names and of the arrays' dtypes, shapes and bytes.

    arrays: x_train, y_train, x_test, y_test, in this order.
    """
    total = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        total.update(f"{array.dtype.name}{list(array.shape)}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def channel_mean_std(images: Images) -> tuple[PerChannel, PerChannel]:
    """Returns the mean and the standard deviation per channel of images uint8 [N, H, W, C], for pixels in [0, 1].

    Both come from exact integer sums, so they do not depend on the order of images or the machine. A constant channel
    gets standard deviation 1, so that dividing by it stays finite.
    """
    counts = np.zeros((3, 256), np.int64)  # of each grey level
    for start in range(0, len(images), 1_000):  # in chunks, because bincount converts its input to int64
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1_000, ..., channel].reshape(-1), minlength=256)
    (r_mean, r_std), (g_mean, g_std), (b_mean, b_std) = (
        _mean_std(channel_counts.tolist()) for channel_counts in counts
    )
    return (r_mean, g_mean, b_mean), (r_std, g_std, b_std)


def _mean_std(counts: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of pixels in [0, 1], from the count of each grey level 0..255."""
    n = sum(counts)
    total = sum(level * count for level, count in enumerate(counts))
    total_of_squares = sum(level * level * count for level, count in enumerate(counts))
    std = math.sqrt(n * total_of_squares - total * total) / n / 255
    return total / n / 255, std or 1.0
