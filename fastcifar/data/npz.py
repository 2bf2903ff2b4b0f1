"""Reads a data set from an .npz file of NumPy arrays: x_train, y_train, x_test, y_test and optionally classes.

Letters: N images of H = W = 32 pixels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data import limits
from fastcifar.data.errors import DataError
from fastcifar.data.raw import Labels, RawData

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> RawData:
    """Returns the arrays of the file: images as stored, labels converted from any integer type to int64 [N].

    Labels may be stored as [N] or [N, 1]. Without `classes` (strings [K]) the classes are named "0", "1", ... Raises
    DataError for missing arrays, labels that are not class numbers, and files too large when decompressed.
    """
    with np.load(path, allow_pickle=False) as file:
        if sum(info.file_size for info in file.zip.infolist()) > limits.MAX_DATASET_BYTES:
            gib = limits.MAX_DATASET_BYTES >> 30
            raise DataError(f"{path}: decompresses to more than {gib} GiB; save a smaller data set")
        missing = [name for name in _REQUIRED if name not in file.files]
        if missing:
            call = f"np.savez(path, {', '.join(f'{name}={name}' for name in _REQUIRED)})"
            raise DataError(f"{path}: lacks {', '.join(missing)}; save it with {call}")
        try:
            arrays = {name: file[name] for name in (*_REQUIRED, "classes") if name in file.files}
        except MemoryError:  # the header of an array may claim any size
            raise DataError(f"{path}: an array needs more memory than there is; close other programs, or save it "
                            "again") from None  # fmt: skip
    y_train, y_test = (_check_labels(path, name, arrays[name]) for name in ("y_train", "y_test"))
    num_classes = 1 + int(y_train.max(initial=0))
    if num_classes > max(1, len(y_train)):  # checked before a name is made for each class
        raise DataError(f"{path}: a label in y_train is {num_classes - 1}; expected 0..K-1 with images of each class")
    names = arrays.get("classes", np.array([str(label) for label in range(num_classes)]))
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: classes is {names.dtype} {list(names.shape)}; expected strings [K]")
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())
    return RawData(classes, arrays["x_train"], y_train, arrays["x_test"], y_test)


def _check_labels(path: Path, name: str, y: NDArray[Any]) -> Labels:
    """Labels as int64 [N]. Raises DataError unless they are integers [N] or [N, 1] in 0..2^31-1."""
    if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
        raise DataError(f"{path}: {name} is {y.dtype} {list(y.shape)}; expected integers [N] or [N, 1]")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 1 << 31:
        raise DataError(f"{path}: a label in {name} is {y.min() if y.min() < 0 else y.max()}; expected 0..K-1")
    return y.reshape(-1).astype(np.int64)
