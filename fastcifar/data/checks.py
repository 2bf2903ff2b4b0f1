"""What every reader of a source shares: limits on what it reads, and checks of the arrays that it returns.

source -> `RawData` -> `Dataset` (which adds a name, the mean and std, and a digest) -> cache -> training.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes.
"""

import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.messages import DataError

MAX_DATASET_BYTES = 4 << 30
"""Of a whole data set, decompressed."""
MAX_IMAGE_BYTES = 1 << 20
"""Of one encoded PNG or JPEG file."""
MAX_PHOTO_BYTES = 64 << 20
"""Of one encoded image of any size, as `fastcifar predict` takes it."""
MAX_PHOTO_PIXELS = 25_000_000
"""Of the same. Decoding takes 4 to 16 bytes for each (most for WebP), so up to 400 MB."""
MAX_BATCH_BYTES = 192 << 20
"""Of one official file; the largest published one, the training images of CIFAR-100, has 155 MB."""
MAX_FILES = 2_000_000
"""Entries of one tar, of any kind."""

Images = NDArray[np.uint8]  # [N, H, W, C]
Labels = NDArray[np.int64]  # [N], 0..K-1


class RawData(NamedTuple):
    """Images and labels of a source; only after `check_raw` are shapes, dtypes and label ranges certain."""

    classes: tuple[str, ...] | None
    """None until `check_raw` calls the classes "0", "1", ..."""
    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    published: str | None = None
    """cifar100 where the source is its published files, by their SHA-256; CIFAR-10 is known by its images instead."""


def read_limited(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Raises DataError if it is none or has more than max_bytes, OSError if unreadable.

    A folder, a device or a named pipe is no file: opening a pipe would wait for a writer without an end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: not a file but a folder, pipe or device; remove it")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path}: larger than {max_bytes >> 20} MiB, too large for what it should be; remove it")
    return data


def check_raw(where: str, raw: RawData) -> RawData:
    """`raw` with C-contiguous images uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1, and names of the classes.

    Raises DataError, which begins with `where`, if anything else is found, if two classes have the same name, or if a
    class has no training images.
    """
    arrays: list[NDArray[Any]] = []
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (32, 32, 3):
            raise DataError(f"{where}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [N, 32, 32, 3]")
        y = check_labels(where, y, f"y_{split}")
        if len(x) != len(y) or not len(y):
            raise DataError(f"{where}: {split} has {len(x)} images and {len(y)} labels; expected one label per image, "
                            "and at least one image")  # fmt: skip
        arrays += [np.ascontiguousarray(x), y]
    x_train, y_train, x_test, y_test = arrays
    classes = raw.classes
    if classes is None:
        largest = int(y_train.max())
        if largest >= len(y_train):  # checked before a name is made for each class
            raise DataError(f"{where}: a label in y_train is {largest}; expected 0..K-1 with images of each class")
        classes = tuple(str(label) for label in range(largest + 1))
    k = len(classes)
    if len(set(classes)) != k or not all(name and name.isprintable() for name in classes):
        raise DataError(f"{where}: class names must be printable, unique and not empty, but are {classes!r}")
    for split, y in (("train", y_train), ("test", y_test)):
        if y.max() >= k:
            raise DataError(f"{where}: a {split} label is {y.max()}; expected 0..{k - 1}")
    counts = np.bincount(y_train, minlength=k)
    if not counts.all():
        raise DataError(f"{where}: class {classes[int(counts.argmin())]!r} has no training images; add some")
    return RawData(classes, x_train, y_train, x_test, y_test, raw.published)


def check_labels(where: str, labels: ArrayLike, name: str = "labels") -> Labels:
    """Labels of any integer type, [N] or [N, 1], as int64 [N]. Raises DataError for others, and outside 0..2^31-1."""
    y: NDArray[Any] = np.asarray(labels)
    if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise DataError(f"{where}: {name} is {y.dtype} {list(y.shape)}; expected integers [N] or [N, 1]")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 1 << 31:
        raise DataError(f"{where}: a label in {name} is {y.min() if y.min() < 0 else y.max()}; expected 0..K-1")
    return y.reshape(-1).astype(np.int64)
