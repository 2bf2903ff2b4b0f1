"""Stores decoded data sets on disk, so that only the first run decodes a source.

A cache file is a safetensors file of the four arrays. Its header has the other fields as JSON, and a
checksum of that. Every read verifies all of it, and that a set called cifar10 is that one: the file's own
checksum does not tell who made it. A damaged file is built again and a cache that cannot be written is not used;
neither stops a run. Files are written atomically, so that processes may start at the same time.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fastcifar.data.dataset import Dataset, dataset_digest
from fastcifar.data.messages import print_warning
from fastcifar.data.official import CIFAR10, CIFAR100, is_cifar10
from fastcifar.files import write_atomically

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
CIFAR10_IN_FOLDERS = "ae68fbd7f5232674cbd8f5bfab0c4f9dc00e92e1576e34dfa8cf0951a1a116d7"
"""`Dataset.digest` of CIFAR-10 as an image folder: a cache of it needs no second look, which takes half a second."""


def cache_folder(cache_dir: str | None = None) -> Path:
    """The folder of cached data sets; it may not exist yet.

    It is the first that is given of cache_dir, $FASTCIFAR_CACHE, $XDG_CACHE_HOME/fastcifar and ~/.cache/fastcifar.
    """
    chosen = cache_dir or os.environ.get("FASTCIFAR_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastcifar"
    except RuntimeError:  # the user has no home folder, as in some containers
        return Path(".cache/fastcifar")


def cache_file(key: str, cache_dir: str | None = None) -> Path:
    """The file of the data set under `key`; v2 is that of the format, so that a file of an older one is not read."""
    return cache_folder(cache_dir) / f"{key}-v2.cache"


def load_or_build(key: str, build: Callable[[], Dataset], cache_dir: str | None = None) -> Dataset:
    """The data set cached under `key`; if there is none, builds it and writes it to the cache.

    CIFAR-100 is never cached: its files are verified at each start, and no digest of its images is known. Problems with
    the cache itself are printed as warnings. Raises what `build` raises.
    """
    path = cache_file(key, cache_dir)
    try:
        dataset = read_cache(path)
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


def is_known_by_content(dataset: Dataset) -> bool:
    """Whether the images alone show that the set is the one it is named after.

    True for a name that stands for no published set. `dataset.digest` must have been compared with the arrays.
    """
    if dataset.name == CIFAR10.name:
        return dataset.digest == CIFAR10_IN_FOLDERS or is_cifar10(*dataset.arrays)
    return dataset.name != CIFAR100.name


def write_cache(file: IO[bytes], dataset: Dataset) -> None:
    """Writes the data set in the format of a cache file."""
    facts = json.dumps([dataset.name, dataset.classes, dataset.mean, dataset.std, dataset.digest, dataset.resized])
    arrays: dict[str, NDArray[Any]] = dict(zip(_ARRAYS, dataset.arrays, strict=True))
    file.write(save(arrays, {"facts": facts, "sha256": hashlib.sha256(facts.encode()).hexdigest()}))


def read_cache(path: Path) -> Dataset:
    """Reads a data set from a cache file. Raises ValueError, or what a parser raises, if the file is damaged."""
    with safe_open(path, framework="numpy") as file:  # compares the size of the file with its header
        header = file.metadata()
        arrays = [file.get_tensor(name) for name in _ARRAYS]
    if hashlib.sha256(header["facts"].encode()).hexdigest() != header["sha256"]:
        raise ValueError("its header does not match its checksum")
    name, classes, mean, std, digest, resized = json.loads(header["facts"])
    if dataset_digest(classes, arrays) != digest:
        raise ValueError("its arrays do not match their checksum")
    x_train, y_train, x_test, y_test = arrays
    return Dataset(name, tuple(classes), x_train, y_train, x_test, y_test, tuple(mean), tuple(std), digest, resized)
