"""Reads the data set at a path, whatever its format, and computes a fingerprint that serves as its cache key.

A source is a folder of official batches, a folder of images, a tar of either, or an .npz file. Nothing is written.
Whatever is wrong with a source ends in a `DataError`.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from fastcifar.data import checks
from fastcifar.data.archives import read_tar
from fastcifar.data.checks import RawData, check_raw
from fastcifar.data.images import (
    class_folders_of,
    images_in,
    is_folder_of_classes,
    read_image_folder,
    split_folders,
)
from fastcifar.data.messages import SUPPORTED_SOURCES, DataError
from fastcifar.data.official import decode_official, find_official
from fastcifar.data.pixels import DECODER

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def read_source(path: Path, progress: bool = True, test_split: float = 0) -> RawData:
    """The checked arrays at `path`: images uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1.

    test_split: the fraction of each class that becomes the test images of a set without any.
    Raises DataError for anything that is not a whole, well-formed data set.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about odd files; the error message alone shall be printed
            return check_raw(str(path), _read_unchecked(path, progress), test_split)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # the parsers of four formats raise too many kinds of exception to list
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: damaged or not a data set ({reason}); download or make it again") from error


def fingerprint(path: Path) -> str:
    """A hexadecimal SHA-256 that changes with the data at `path`, and with the way images are decoded.

    For a file it covers the content; for a folder the path, where its class folders lie, and the names, sizes and
    modification times of the files that are read, which is much faster than reading them. Links count as what they lead
    to. Raises DataError if `path` is no data set or cannot be read.
    """
    decoder = f"decoder {DECODER}\n".encode()
    try:
        if _source_kind(path) == "file":
            with path.open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.sha256(decoder)).hexdigest()
        total = hashlib.sha256(decoder + os.fsencode(path.resolve()))
        for folder, files in _files_of(path):
            total.update(os.fsencode(f"{folder.relative_to(path)}:{folder.resolve()}\n"))
            for read in files:
                stat = read.stat()
                total.update(os.fsencode(f"{read.name}:{stat.st_size}:{stat.st_mtime_ns}\n"))
        return total.hexdigest()
    except OSError as error:
        where = error.filename or path
        raise DataError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error


def _files_of(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder that `_read_unchecked` reads in a folder, with the files that it reads there."""
    if found := find_official(path):
        official, root = found
        yield root, [root / name for name in official.files if (root / name).exists()]
    else:
        for root in split_folders(path) or [path]:
            for folder in class_folders_of(root):
                yield folder, images_in(folder)


def _source_kind(path: Path) -> Literal["file", "folder"]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {SUPPORTED_SOURCES}")
    if path.is_file():
        return "file"
    if path.is_dir() and (find_official(path) or split_folders(path) or is_folder_of_classes(path)):
        return "folder"
    raise DataError(f"{path}: holds no data set; {SUPPORTED_SOURCES}")


def _read_unchecked(path: Path, progress: bool) -> RawData:
    if _source_kind(path) == "folder":
        if not (found := find_official(path)):
            return read_image_folder(path, progress)
        official, root = found
        existing = [name for name in official.files if (root / name).exists()]
        files = {name: checks.read_limited(root / name, checks.MAX_BATCH_BYTES) for name in existing}
        return decode_official(root, official, files)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # an .npz is a zip; the content decides, not the suffix
    return read_npz(path) if is_zip else read_tar(path, progress)


def read_npz(path: Path) -> RawData:
    """The arrays of an .npz file: x_train, y_train, optionally x_test and y_test, and classes, strings [K].

    Raises DataError for missing arrays, and for a file that is too large when decompressed.
    """
    with np.load(path, allow_pickle=False) as file:
        if sum(info.file_size for info in file.zip.infolist()) > checks.MAX_DATASET_BYTES:
            gib = checks.MAX_DATASET_BYTES >> 30
            raise DataError(f"{path}: decompresses to more than {gib} GiB; save a smaller data set")
        has_test = "x_test" in file.files or "y_test" in file.files
        missing = [name for name in _ARRAYS[: 4 if has_test else 2] if name not in file.files]
        if missing:
            call = f"np.savez(path, {', '.join(f'{name}={name}' for name in _ARRAYS)})"
            raise DataError(f"{path}: lacks {', '.join(missing)}; save it with {call}")
        try:
            arrays = {name: file[name] for name in (*_ARRAYS, "classes") if name in file.files}
        except MemoryError:  # the header of an array may claim any size
            raise DataError(f"{path}: an array needs more memory than there is; close other programs, or save it "
                            "again") from None  # fmt: skip
    names = arrays.pop("classes", None)
    if not has_test:
        arrays |= {"x_test": arrays["x_train"][:0], "y_test": arrays["y_train"][:0]}
    if names is None:
        return RawData(None, **arrays)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: classes is {names.dtype} {list(names.shape)}; expected strings [K]")
    return RawData(tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist()), **arrays)
