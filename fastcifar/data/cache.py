"""Stores decoded data sets on disk, so that only the first run decodes a source.

A cache file is one line (a checksum, then JSON with the names, shapes, mean, std and digest), followed by the bytes of
the four arrays. Every read verifies all of it, and that a set called cifar10 is that one: the file's own checksum does
not tell who made it. A damaged file is built again and a cache that cannot be written is not used; neither stops a run.
Files are written atomically, so that processes may start at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastcifar.data.cifar10 import is_known_by_content
from fastcifar.data.dataset import Dataset, dataset_digest
from fastcifar.data.errors import print_warning
from fastcifar.data.official import CIFAR100
from fastcifar.files import write_atomically

_ARRAY_DTYPES: dict[str, Any] = {"x_train": np.uint8, "y_train": np.int64, "x_test": np.uint8, "y_test": np.int64}
_MAX_HEADER_BYTES = 1 << 20  # of the first line, so that a file without a line break is not read whole


def cache_folder(cache_dir: str | None = None) -> Path:
    """Returns the folder of cached data sets; it may not exist yet.

    It is the first that is given of cache_dir, $FASTCIFAR_CACHE, $XDG_CACHE_HOME/fastcifar and ~/.cache/fastcifar.
    """
    chosen = cache_dir or os.environ.get("FASTCIFAR_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastcifar"
    except RuntimeError:  # the user has no home folder, as in some containers
        return Path(".cache/fastcifar")


def load_or_build(key: str, build: Callable[[], Dataset], cache_dir: str | None = None) -> Dataset:
    """Returns the data set cached under `key`; if there is none, builds it and writes it to the cache.

    CIFAR-100 is never cached: its files are verified at each start, and no digest of its images is known. Problems with
    the cache itself are printed as warnings. Raises what `build` raises.
    """
    path = cache_folder(cache_dir) / f"{key}.cache"
    try:
        with path.open("rb") as file:
            dataset = read_cache(file)
        if is_known_by_content(dataset):
            return dataset
        raise ValueError(f"its images are not known to be those of {dataset.name}")
    except FileNotFoundError:
        pass
    except OSError as error:
        print_warning(f"{path}: the cache cannot be read ({error.strerror}); decoding again")
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything; the remedy is always the same
        print_warning(f"{path}: the cache is damaged ({error}); building it again")
    dataset = build()
    if dataset.name == CIFAR100.name:
        return dataset
    try:
        write_atomically(path, lambda file: write_cache(file, dataset))
    except OSError as error:
        print_warning(f"{path}: the cache cannot be written ({error.strerror}); going on without it")
    return dataset


def write_cache(file: IO[bytes], dataset: Dataset) -> None:
    """Writes the data set in the format of a cache file."""
    arrays = {name: getattr(dataset, name) for name in _ARRAY_DTYPES}
    header: dict[str, Any] = {name: getattr(dataset, name) for name in ("name", "classes", "mean", "std", "digest")}
    line = json.dumps(header | {name: array.shape for name, array in arrays.items()})
    file.write(f"{hashlib.sha256(line.encode()).hexdigest()} {line}\n".encode())
    for array in arrays.values():
        file.write(array.data)


def read_cache(file: IO[bytes]) -> Dataset:
    """Reads a data set from a cache file. Raises ValueError, or what a parser raises, if the file is damaged."""
    checksum, _, line = file.readline(_MAX_HEADER_BYTES).rstrip(b"\n").partition(b" ")
    if hashlib.sha256(line).hexdigest().encode() != checksum:
        raise ValueError("its first line does not match its checksum")
    header = json.loads(line)
    size = sum(math.prod(header[name]) * np.dtype(dtype).itemsize for name, dtype in _ARRAY_DTYPES.items())
    if os.fstat(file.fileno()).st_size != file.tell() + size:  # checked before memory for the arrays is allocated
        raise ValueError("its size does not match its first line")
    x_train, y_train, x_test, y_test = (
        np.fromfile(file, dtype, math.prod(header[name])).reshape(header[name]) for name, dtype in _ARRAY_DTYPES.items()
    )
    classes = tuple(header["classes"])
    if dataset_digest(classes, (x_train, y_train, x_test, y_test)) != header["digest"]:
        raise ValueError("its arrays do not match their checksum")
    mean, std = tuple(header["mean"]), tuple(header["std"])
    return Dataset(header["name"], classes, x_train, y_train, x_test, y_test, mean, std, header["digest"])
