"""Finds a data set, keeps it decoded in a cache, and cuts subsets: everything up to uint8 arrays in memory.

A cached start reads one file and checks all of it against its checksum. A cache that is damaged is built again, one
that cannot be written is done without; a write is a new file renamed, so two processes may start at once.

Letters: N images of H = W = 32 pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastcifar import download, sources, synthetic
from fastcifar.config import Config
from fastcifar.files import write_atomically
from fastcifar.sources import DataError

__all__ = ["DataError", "Dataset", "cache_folder", "hold_out", "load", "take_subset"]

SMOKE_IMAGES = 2_000
_ARRAYS: dict[str, Any] = {"x_train": np.uint8, "y_train": np.int64, "x_test": np.uint8, "y_test": np.int64}
_MAX_HEADER = 1 << 20  # bytes of a cache file's first line
CIFAR10_CONTENT = {
    "train": "6c3d94351344c6460973c9795f4a4fcc19984b1b894a9b39889a02e380f4d4d3",
    "test": "7742db831caeba84ea1d4663e0d07ca1879cbb76e501e036935be5fd5506749b",
}
"""`content_digest` of the published CIFAR-10, labels numbered by class name in alphabetical order as there."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, C-contiguous. Compare two by their digest."""

    name: str
    """cifar10 (recognised by its content), synthetic, or what the user's file or folder is called."""
    classes: tuple[str, ...]
    x_train: np.ndarray  # uint8 [N, H, W, C]
    y_train: np.ndarray  # int64 [N], 0..K-1
    x_test: np.ndarray
    y_test: np.ndarray
    mean: tuple[float, float, float]
    """Of the training images per channel, in [0, 1] units; parts of a set keep the whole set's, so they compare."""
    std: tuple[float, float, float]
    digest: str
    """SHA-256 of the arrays and the class names."""


def load(config: Config, progress: bool = True) -> Dataset:
    """The data set that `config` asks for, from the cache where it can be; then its part if subset or smoke is set.

    Raises DataError when it is missing, damaged or in no known form.
    """
    wanted = config.subset or (SMOKE_IMAGES if config.smoke else None)
    if config.data == "synthetic":
        dataset = _synthetic(config, wanted, progress)
    elif config.data in ("auto", "cifar10"):
        dataset = _cifar10(config, wanted, progress)
    else:
        dataset = _from_path(config, Path(os.path.expanduser(config.data)), progress)
    if config.subset:
        return take_subset(dataset, config.subset)
    if config.smoke:  # a set that is smaller than the smoke run's is taken whole
        smallest = int(np.bincount(dataset.y_train).min())
        return take_subset(dataset, min(SMOKE_IMAGES, smallest * len(dataset.classes)))
    return dataset


def cache_folder(config: Config) -> Path:
    """For decoded sets: config.cache_dir, $FASTCIFAR_CACHE, $XDG_CACHE_HOME/fastcifar or ~/.cache/fastcifar."""
    chosen = config.cache_dir or os.environ.get("FASTCIFAR_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastcifar"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(".cache/fastcifar")


# Parts of a set


def take_subset(dataset: Dataset, n_train: int) -> Dataset:
    """The first n_train training images, classes in equal parts, and a fifth as many test images (where there are).

    mean and std stay those of the whole set. Raises DataError when a class has too few images, or n_train is below K.
    """
    k = len(dataset.classes)
    if n_train < k:
        raise DataError(f"subset is {n_train}; take at least {k}, one image of each class")
    train = _equal_parts(dataset.y_train, n_train, k)
    if len(train) < n_train:
        most = int(np.bincount(dataset.y_train, minlength=k).min()) * k
        raise DataError(f"subset is {n_train}, but in equal parts {dataset.name} has {most}; take at most that many")
    test = _equal_parts(dataset.y_test, max(k, n_train // 5), k)
    return _with(dataset, dataset.x_train[train], dataset.y_train[train], dataset.x_test[test], dataset.y_test[test])


def _equal_parts(labels: np.ndarray, n: int, k: int) -> np.ndarray:
    """Rows of n images, as many of each class (the first n mod k classes give one more), in their order."""
    rows = [np.flatnonzero(labels == label)[: n // k + (label < n % k)] for label in range(k)]
    return np.sort(np.concatenate(rows))


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """(the set with fewer training images, x_val uint8 [V, H, W, C], y_val int64 [V]), each class in proportion.

    mean and std stay. Raises DataError when a class would be left without images on either side.
    """
    random = np.random.default_rng([seed, 1])
    held = np.zeros(len(dataset.y_train), bool)
    for label, name in enumerate(dataset.classes):
        rows = np.flatnonzero(dataset.y_train == label)
        count = round(fraction * len(rows))
        if not 0 < count < len(rows):
            raise DataError(f"val_split {fraction} of the {len(rows)} images of class {name!r} is {count}; change it")
        held[random.permutation(rows)[:count]] = True
    x, y = dataset.x_train, dataset.y_train
    return _with(dataset, x[~held], y[~held], dataset.x_test, dataset.y_test), x[held], y[held]


def _with(dataset: Dataset, *arrays: np.ndarray) -> Dataset:
    changed: dict[str, Any] = dict(zip(_ARRAYS, arrays, strict=True))
    return replace(dataset, **changed, digest=_digest(dataset.classes, arrays))


# Where sets come from


def _from_path(config: Config, path: Path, progress: bool) -> Dataset:
    key = sources.fingerprint(path)[:32]
    name = re.sub(r"(\.tar)?\.(tar|gz|tgz|xz|txz|bz2|tbz2?|npz)$", "", path.resolve().name, flags=re.IGNORECASE)
    if name in ("cifar10", "synthetic"):
        name += "-custom"  # those two names are promises about the content
    dataset = _kept(config, key, lambda: _build(sources.read(path, progress), name))
    return dataset if dataset.name == "cifar10" else replace(dataset, name=name)


def _cifar10(config: Config, wanted: int | None, progress: bool) -> Dataset:
    """From the cache, a data folder, or the network; else for auto the synthetic set."""
    cache, own = cache_folder(config), os.environ.get("FASTCIFAR_DATA")
    downloads = Path(own).expanduser() if own else cache
    target = downloads / download.ARCHIVE

    def build() -> Dataset:
        places = [place / name for place in (downloads, Path("data"), cache) for name in ("", download.ARCHIVE)]
        found = next((p for p in places if p.is_file() or (p / sources.OFFICIAL_FOLDER).is_dir()), None)
        if found is None:
            download.fetch(target, progress)
        raw = sources.read(found or target, progress)
        if not raw.official:
            raise DataError(f"{found}: not the published CIFAR-10 (its checksums differ); fetch {download.URL} again, "
                            f"or use it as it is with --data {found}")  # fmt: skip
        return _build(raw, "cifar10")

    try:
        return _kept(config, "cifar10", build)
    except download.NoDownloadError as error:
        missing = f"CIFAR-10 is not here and cannot be downloaded ({error}): fetch {download.URL} to {target}"
        if config.data == "cifar10":
            raise DataError(missing) from error
        _warn(f"{missing}. TRAINING ON THE BUILT-IN SYNTHETIC SET INSTEAD: its accuracy says nothing about CIFAR-10")
        return _synthetic(config, wanted, progress)


def _synthetic(config: Config, wanted: int | None, progress: bool) -> Dataset:
    if wanted and wanted <= 10_000:  # the first images of the whole set, drawn in a second: no need to keep them
        n = math.ceil(wanted / 10) * 10
        made = sources.Raw(synthetic.CLASSES, *synthetic.make(n, max(10, math.ceil(n / 50) * 10))[:4])
        return replace(_build(made, "synthetic"), mean=synthetic.MEAN, std=synthetic.STD)

    def build() -> Dataset:
        with sources.bar("drawing the synthetic set", progress):
            return _build(sources.Raw(synthetic.CLASSES, *synthetic.make()[:4]), "synthetic")

    return _kept(config, f"synthetic-{synthetic.VERSION}", build)


def _build(raw: sources.Raw, name: str) -> Dataset:
    arrays = raw[1:5]
    mean, std = _mean_std(raw.x_train)
    name = "cifar10" if raw.official or is_cifar10(raw) else name
    return Dataset(name, raw.classes, *arrays, mean=mean, std=std, digest=_digest(raw.classes, arrays))


def is_cifar10(raw: sources.Raw) -> bool:
    """Whether the images and labels are those of CIFAR-10, whatever the container and the order they came in."""
    splits = {"train": (raw.x_train, raw.y_train), "test": (raw.x_test, raw.y_test)}
    if len(raw.y_train) != 50_000 or len(raw.y_test) != 10_000:
        return False
    return all(content_digest(*splits[name]) == digest for name, digest in CIFAR10_CONTENT.items())


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the sorted SHA-256 digests of each image's pixels and label: the same in every order.

    images: uint8 [N, H, W, C], C-contiguous. labels: int64 [N], hashed as 8 bytes, little-endian.
    """
    pairs = zip(images, labels.astype("<i8"), strict=True)
    digests = sorted(hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _mean_std(images: np.ndarray) -> tuple[Any, Any]:
    """Per channel, in [0, 1] units, exact until the last division: sums of counts are integers of any length."""
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 1_000):  # bincount widens to int64: a chunk at a time
        for channel in range(3):
            counts[channel] += np.bincount(images[start : start + 1_000, ..., channel].reshape(-1), minlength=256)
    n = len(images) * 32 * 32
    first = [sum(level * int(c) for level, c in enumerate(row)) for row in counts]
    second = [sum(level * level * int(c) for level, c in enumerate(row)) for row in counts]
    deviations = (math.sqrt(n * b - a * a) / n / 255 for a, b in zip(first, second, strict=True))
    return tuple(a / n / 255 for a in first), tuple(d or 1.0 for d in deviations)  # 1: a constant channel stays finite


def _digest(classes: tuple[str, ...], arrays: Any) -> str:
    total = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        total.update(f"{array.dtype.name}{list(array.shape)}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


# The cache: a line of checksum and JSON, then the four arrays as they lie in memory


def _kept(config: Config, key: str, build: Callable[[], Dataset]) -> Dataset:
    """The set under `key` from the cache, else built and put there."""
    path = cache_folder(config) / f"{key}.cache"
    try:
        with path.open("rb") as file:
            return _read_cache(file)
    except FileNotFoundError:
        pass
    except OSError as error:
        _warn(f"{path}: the cache cannot be read ({error.strerror}); decoding again")
    except Exception as error:  # whatever a damaged file leads to, the answer is the same
        _warn(f"{path}: the cache is damaged ({error}); building it again")
    dataset = build()
    try:
        write_atomically(path, lambda file: _write_cache(file, dataset))
    except OSError as error:
        _warn(f"{path}: the cache cannot be written ({error.strerror}); going on without it")
    return dataset


def _write_cache(file: IO[bytes], dataset: Dataset) -> None:
    arrays = {name: getattr(dataset, name) for name in _ARRAYS}
    facts: dict[str, Any] = {name: getattr(dataset, name) for name in ("name", "classes", "mean", "std", "digest")}
    line = json.dumps(facts | {name: array.shape for name, array in arrays.items()})
    file.write(f"{hashlib.sha256(line.encode()).hexdigest()} {line}\n".encode())
    for array in arrays.values():
        file.write(array.data)


def _read_cache(file: Any) -> Dataset:
    check, _, line = file.readline(_MAX_HEADER).rstrip(b"\n").partition(b" ")
    if hashlib.sha256(line).hexdigest().encode() != check:
        raise ValueError("its first line does not match its checksum")
    facts = json.loads(line)
    size = sum(math.prod(facts[name]) * np.dtype(kind).itemsize for name, kind in _ARRAYS.items())
    if os.fstat(file.fileno()).st_size != file.tell() + size:
        raise ValueError("it is cut off")
    arrays: Any = [np.fromfile(file, a, math.prod(facts[name])).reshape(facts[name]) for name, a in _ARRAYS.items()]
    classes = tuple(facts["classes"])
    if _digest(classes, arrays) != facts["digest"]:
        raise ValueError("its arrays do not match their checksum")
    x_train, y_train, x_test, y_test = arrays
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return Dataset(facts["name"], classes, x_train, y_train, x_test, y_test, mean, std, facts["digest"])


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
