"""What every reader of a source shares: limits on what it reads, and checks of the arrays that it returns.

source -> `RawData` -> `check_raw` -> `Dataset` (which adds a name, mean, std and a digest) -> cache -> training.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes.
"""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.messages import DataError
from fastcifar.data.pixels import Images, to_32, to_rgb

MAX_DATASET_BYTES = 4 << 30
"""Of a whole data set, decompressed."""
MAX_IMAGE_BYTES = 1 << 20
"""Of one encoded image of a data set."""
MAX_PHOTO_BYTES = 64 << 20
"""Of one encoded image of any size, as `fastcifar predict` takes it."""
MAX_PHOTO_PIXELS = 25_000_000
"""Of the same. Decoding takes 4 to 16 bytes for each (most for WebP), so up to 400 MB."""
MAX_BATCH_BYTES = 192 << 20
"""Of one official file; the largest published one, the training images of CIFAR-100, has 155 MB."""
MAX_FILES = 2_000_000
"""Entries of one tar, of any kind."""
TEST_SPLIT_SEED = 0
"""Of the choice of test images by test_split: the same for every seed of a run."""

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
    resized: int = 0
    """Images that had another size than 32x32."""


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


def check_raw(where: str, raw: RawData, test_split: float = 0) -> RawData:
    """`raw` with C-contiguous images uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1, and names of the classes.

    Images are converted as `fastcifar.data.pixels` says, labels that are text are numbered. test_split: the fraction of
    each class that becomes the test images of a set without any. Raises DataError, which begins with `where`, if
    anything else is found, if two classes have the same name, or if a class has no training images.
    """
    x_train, x_test = to_rgb(raw.x_train, f"{where}: x_train"), to_rgb(raw.x_test, f"{where}: x_test")
    resized = raw.resized + sum(len(x) for x in (x_train, x_test) if x.shape[1:3] != (32, 32))
    classes = raw.classes
    if classes is None and (names := _texts(raw.y_train)) is not None:
        classes = tuple(sorted(set(names)))
    y_train = check_labels(where, raw.y_train, "y_train", classes)
    y_test = check_labels(where, raw.y_test, "y_test", classes) if len(raw.y_test) else np.empty(0, np.int64)
    _check_counts(where, "train", x_train, y_train)
    classes = _numbered_classes(where, y_train) if classes is None else classes
    k = len(classes)
    if len(y_train) and y_train.max() < k and not (counts := np.bincount(y_train, minlength=k)).all():
        first = "; labels begin at 0" if counts[0] == 0 and raw.classes is None else ""
        raise DataError(f"{where}: class {classes[int(counts.argmin())]!r} has no training images; add some{first}")
    if len(set(classes)) != k or not all(name and name.isprintable() for name in classes):
        raise DataError(f"{where}: class names must be printable, unique and not empty, but are {classes!r}")
    if not len(x_test) and not len(y_test) and test_split:
        is_test = stratified(y_train, classes, test_split, np.random.default_rng([TEST_SPLIT_SEED, 2]), "test_split")
        x_train, x_test, y_train, y_test = x_train[~is_test], x_train[is_test], y_train[~is_test], y_train[is_test]
    elif test_split:
        raise DataError(f"{where}: has test images of its own; leave test_split out")
    _check_counts(where, "test", x_test, y_test)
    for split, y in (("train", y_train), ("test", y_test)):
        if y.max() >= k:
            raise DataError(f"{where}: a {split} label is {y.max()}; expected 0..{k - 1}")
    if k < 2:
        raise DataError(f"{where}: has one class, {classes[0]!r}; expected two at least")
    return RawData(classes, to_32(x_train), y_train, to_32(x_test), y_test, raw.published, resized)


def check_labels(
    where: str,
    labels: ArrayLike,
    name: str = "labels",
    classes: Sequence[str] | None = None,
    only_numbers: bool = False,
) -> Labels:
    """Labels of any integer type, [N] or [N, 1], as int64 [N]; or names of the given classes. DataError for others."""
    y: NDArray[Any] = np.asarray(labels)
    if classes is not None and (names := _texts(y)) is not None:
        number = {text: label for label, text in enumerate(classes)}
        if unknown := [text for text in names if text not in number]:
            raise DataError(f"{where}: a label in {name} is {unknown[0]!r}; expected one of {', '.join(classes)}")
        return np.array([number[text] for text in names], np.int64)
    if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise DataError(f"{where}: {name} is {y.dtype} {list(y.shape)}; expected integers [N] or [N, 1]"
                        + ("" if only_numbers else ", or names of classes"))  # fmt: skip
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 1 << 31:
        raise DataError(f"{where}: a label in {name} is {y.min() if y.min() < 0 else y.max()}; expected 0..K-1")
    return y.reshape(-1).astype(np.int64)


def stratified(
    labels: Labels, classes: Sequence[str], fraction: float, random: np.random.Generator, setting: str
) -> NDArray[np.bool_]:
    """Which images [N] to take out: the same fraction of each class, at random.

    Raises DataError, which names the setting, if a class would have no images on either side.
    """
    taken = np.zeros(len(labels), bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        count = round(fraction * len(rows))
        if not 0 < count < len(rows):
            raise DataError(f"{setting} {fraction} takes {count} of the {len(rows)} images of class {name!r}; use a "
                            "fraction that leaves images on both sides")  # fmt: skip
        taken[random.permutation(rows)[:count]] = True
    return taken


def _texts(y: NDArray[Any]) -> list[str] | None:
    """Labels [N] or [N, 1] that are text; None for others."""
    values = np.asarray(y).reshape(-1).tolist()
    return values if y.dtype.kind in "UO" and values and all(isinstance(value, str) for value in values) else None


def _check_counts(where: str, split: str, x: Images, y: Labels) -> None:
    if len(x) != len(y) or not len(y):
        cut = ", or take some of the training images with test_split 0.1" if split == "test" and not len(x) else ""
        raise DataError(f"{where}: {split} has {len(x)} images and {len(y)} labels; expected one label per image, and "
                        f"at least one image{cut}")  # fmt: skip


def _numbered_classes(where: str, y_train: Labels) -> tuple[str, ...]:
    """The names "0", "1", ... up to the largest label."""
    largest = int(y_train.max())
    if largest >= len(y_train):  # checked before a name is made for each class
        raise DataError(f"{where}: a label in y_train is {largest}; expected 0..K-1 with images of each class")
    return tuple(str(label) for label in range(largest + 1))
