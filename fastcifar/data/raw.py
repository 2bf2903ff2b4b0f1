"""The arrays that every reader of a source returns, and the checks that they all must pass.

source -> `RawData` -> `Dataset` (which adds a name, the mean and std, and a digest) -> cache -> training.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.errors import DataError

Images = NDArray[np.uint8]  # [N, H, W, C]
Labels = NDArray[np.int64]  # [N], 0..K-1


class RawData(NamedTuple):
    """Decoded images and labels of a source; only after `check_raw` are shapes, dtypes and label ranges certain."""

    classes: tuple[str, ...]
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    published: str | None = None
    """cifar100 where the source is its published files, by their SHA-256; CIFAR-10 is known by its images instead."""


def check_raw(path: Path, raw: RawData) -> RawData:
    """Returns `raw` with C-contiguous images: uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1, both splits not empty.

    Raises DataError, with `path` in the message, if anything else is found, if two classes have the same name, or if
    a class has no training images.
    """
    k = len(raw.classes)
    if len(set(raw.classes)) != k or not all(name and name.isprintable() for name in raw.classes):
        raise DataError(f"{path}: class names must be printable, unique and not empty, but are {raw.classes!r}")
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (32, 32, 3):
            raise DataError(f"{path}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [N, 32, 32, 3]")
        if y.ndim != 1 or len(x) != len(y) or not len(y):
            raise DataError(f"{path}: {split} has {len(x)} images and {len(y)} labels; expected one label per image, "
                            "and at least one image")  # fmt: skip
        if y.min() < 0 or y.max() >= k:
            raise DataError(f"{path}: a {split} label is {y.min() if y.min() < 0 else y.max()}; expected 0..{k - 1}")
    counts = np.bincount(raw.y_train, minlength=k)
    if not counts.all():
        raise DataError(f"{path}: class {raw.classes[int(counts.argmin())]!r} has no training images; add some")
    return raw._replace(x_train=np.ascontiguousarray(raw.x_train), x_test=np.ascontiguousarray(raw.x_test))
