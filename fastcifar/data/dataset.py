"""`Dataset`: the images and labels in memory that training starts from, and the ways to take parts of them.

`load` makes a Dataset from a source or from the cache; training cuts subsets and validation images here.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes, V validation images.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.checks import Images, Labels, RawData, check_raw, stratified
from fastcifar.data.messages import DataError
from fastcifar.data.official import is_cifar10

PerChannel = tuple[float, ...]
"""Of 3 channels."""

VAL_SPLIT_SEED = 0
"""Of the choice of held-out images by val_split: the same for every seed of a run, so that their figures compare."""


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
    resized: int = 0
    """Images of the whole set that had another size than 32x32."""

    @classmethod
    def from_arrays(
        cls,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_test: ArrayLike = (),
        y_test: ArrayLike = (),
        *,
        test_split: float = 0,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """The data set of images [N, H, W, C], [N, C, H, W] or [N, H, W] and labels [N], checked.

        Args:
            x_train: uint8 or floats in [0, 1], 24 to 96 pixels high and wide, 1 or 3 channels; torch tensors on the
                CPU, too. Other sizes than 32x32 are resized.
            y_train: integers 0..K-1, or names of classes.
            x_test: likewise. Without any, a part of the training images is taken: give `test_split`.
            y_test: likewise.
            test_split: fraction of each class that becomes the test images, the same at each call.
            classes: names of the classes; by default "0", "1", ..., or the names in y_train in alphabetical order.
            name: what the record calls the data set, unless the images are those of CIFAR-10.

        Raises:
            DataError: an array has another dtype, shape or range.
        """
        names = tuple(classes) if classes is not None else None
        try:
            x, y = np.asarray(x_train), np.asarray(y_train)
        except ValueError as error:
            raise DataError("images or labels are no array: all images must have one size; give uint8 [N, H, W, C] and "
                            "integers [N]") from error  # fmt: skip
        if x.ndim == 0 or y.ndim == 0:
            kind = type(x_train if x.ndim == 0 else y_train).__name__
            raise DataError(f"a {kind} is no array: give images as uint8 [N, H, W, C] and labels as integers [N]")
        has_test = len(x_test) or len(y_test)  # type: ignore[arg-type]  # arrays and lists have a length
        x_test, y_test = (np.asarray(x_test), np.asarray(y_test)) if has_test else (x[:0], y[:0])
        if not 0 <= test_split < 1:
            raise DataError(f"test_split is {test_split}; it must be at least 0 and below 1")
        return make_dataset(check_raw(name, RawData(names, x, y, x_test, y_test), test_split), name)

    @property
    def arrays(self) -> tuple[Images, Labels, Images, Labels]:
        """x_train, y_train, x_test, y_test."""
        return self.x_train, self.y_train, self.x_test, self.y_test


def take_subset(dataset: Dataset, n_train: int) -> Dataset:
    """The first n_train training images, with classes in equal parts, and at most a fifth as many test images.

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
    """The largest number of training images with equally many of each class."""
    k = len(dataset.classes)
    return int(np.bincount(dataset.y_train, minlength=k).min()) * k


def _rows_in_equal_parts(labels: Labels, n: int, k: int) -> NDArray[np.intp]:
    """Rows of the first n images with equally many of each class, in ascending order, fewer where images are lacking.

    If K does not divide n, the first n mod K classes get one image more.
    """
    rows = [np.flatnonzero(labels == label)[: n // k + (label < n % k)] for label in range(k)]
    return np.sort(np.concatenate(rows))


def hold_out(dataset: Dataset, fraction: float, seed: int = VAL_SPLIT_SEED) -> tuple[Dataset, Images, Labels]:
    """The data set without its validation images, and those: x_val uint8 [V, H, W, C] and y_val int64 [V].

    The split is random by `seed`, which is not that of a run, and stratified: the same fraction of each class is held
    out. mean and std stay those of the whole set. Raises DataError if a class would have no images on either side.
    """
    random = np.random.default_rng([seed, 1])
    is_validation = stratified(dataset.y_train, dataset.classes, fraction, random, "val_split")
    x, y = dataset.x_train, dataset.y_train
    rest = _replace_arrays(dataset, x[~is_validation], y[~is_validation], dataset.x_test, dataset.y_test)
    return rest, x[is_validation], y[is_validation]


def _replace_arrays(dataset: Dataset, x_train: Images, y_train: Labels, x_test: Images, y_test: Labels) -> Dataset:
    digest = dataset_digest(dataset.classes, (x_train, y_train, x_test, y_test))
    return replace(dataset, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, digest=digest)


def dataset_digest(classes: tuple[str, ...], arrays: Sequence[NDArray[Any]]) -> str:
    """The SHA-256 of the class names and of the arrays' dtypes, shapes and bytes.

    arrays: x_train, y_train, x_test, y_test, in this order.
    """
    total = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        total.update(f"{array.dtype.name}{list(array.shape)}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def channel_mean_std(images: Images) -> tuple[PerChannel, PerChannel]:
    """The mean and the standard deviation per channel of images uint8 [N, H, W, C], for pixels in [0, 1].

    Both come from exact integer sums, so they do not depend on the order of images or the machine. A constant channel
    gets standard deviation 1, so that dividing by it stays finite.
    """
    counts = np.zeros((3, 256), np.int64)  # of each grey level
    for start in range(0, len(images), 1_000):  # in chunks, because bincount converts its input to int64
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1_000, ..., channel].reshape(-1), minlength=256)
    levels = np.arange(256)
    sums = (counts @ np.stack([levels**0, levels, levels**2], axis=1)).tolist()  # as Python's integers: n * squares
    mean = tuple(total / n / 255 for n, total, _ in sums)  # would overflow 64 bits
    std = tuple(math.sqrt(n * squares - total * total) / n / 255 or 1.0 for n, total, squares in sums)
    return mean, std


def make_dataset(raw: RawData, name: str) -> Dataset:
    """Checked arrays with mean, std and digest. The name becomes that of an official set whose content it is."""
    assert raw.classes is not None
    arrays = raw.x_train, raw.y_train, raw.x_test, raw.y_test
    mean, std = channel_mean_std(raw.x_train)
    name = raw.published or ("cifar10" if is_cifar10(*arrays) else name)
    return Dataset(name, raw.classes, *arrays, mean, std, dataset_digest(raw.classes, arrays), raw.resized)
