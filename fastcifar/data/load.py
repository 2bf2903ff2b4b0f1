"""`load`: finds a data set by name or path and returns it as uint8 arrays, from the cache where possible.

source (download, folder, archive, arrays or synthetic) -> raw arrays -> `Dataset` -> cache -> subset -> training.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path

from fastcifar.data import cache, download, sources, synthetic
from fastcifar.data.cifar10 import is_cifar10
from fastcifar.data.dataset import Dataset, channel_mean_std, dataset_digest, largest_subset, take_subset
from fastcifar.data.errors import DataError, print_warning
from fastcifar.data.official import OFFICIAL_FOLDER
from fastcifar.data.progress import progress_bar
from fastcifar.data.raw import RawData

__all__ = ["SMOKE_IMAGES", "load"]

SMOKE_IMAGES = 2_000
"""Training images of a smoke run for which no subset is chosen."""
_MAX_UNCACHED_SYNTHETIC_IMAGES = 10_000  # drawn in about a second


class _MissingCifar10Error(DataError):
    """CIFAR-10 is not on this machine and cannot be downloaded."""


def load(
    source: str = "auto",
    *,
    subset: int | None = None,
    smoke: bool = False,
    cache_dir: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Returns the data set at `source`: images uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1.

    Args:
        source: "cifar10"; "auto", which is CIFAR-10 or, without a network to download it, the synthetic set with a
            warning; "synthetic"; or the path of a folder, tar or .npz.
        subset: number of training images to take, equally many of each class. None takes all.
        smoke: take at most SMOKE_IMAGES training images, or at most `subset` if it is given; a set without so many
            gives what it has.
        cache_dir: folder of cached data sets; see `cache.cache_folder` for the default.
        progress: show on stderr how far a download or decoding has come.

    Raises:
        DataError: the data set is missing, damaged or of no supported kind, or too small for `subset`.
    """
    n_train = SMOKE_IMAGES if smoke and subset is None else subset
    if source == "synthetic":
        dataset = _load_synthetic(n_train, cache_dir, progress)
    elif source in ("auto", "cifar10"):
        try:
            dataset = _load_cifar10(cache_dir, progress)
        except _MissingCifar10Error as error:
            if source == "cifar10":
                raise
            print_warning(
                f"{error}. TRAINING ON THE BUILT-IN SYNTHETIC SET INSTEAD: its accuracy says nothing about CIFAR-10"
            )
            dataset = _load_synthetic(n_train, cache_dir, progress)
    else:
        dataset = _load_path(Path(os.path.expanduser(source)), cache_dir, progress)
    if n_train is None:
        return dataset
    return take_subset(dataset, min(n_train, largest_subset(dataset)) if smoke else n_train)


def _load_path(path: Path, cache_dir: str | None, progress: bool) -> Dataset:
    key = sources.fingerprint(path)[:32]
    name = re.sub(r"(\.tar)?\.(tar|gz|tgz|xz|txz|bz2|tbz2?|npz)$", "", path.resolve().name, flags=re.IGNORECASE)
    if name in ("cifar10", "synthetic"):
        name += "-custom"  # those two names state what the content is
    dataset = cache.load_or_build(key, lambda: _make_dataset(sources.read_source(path, progress), name), cache_dir)
    # The key stands for the content: the cached name may be that of a copy of the file elsewhere.
    return dataset if dataset.name == "cifar10" else replace(dataset, name=name)


def _load_cifar10(cache_dir: str | None, progress: bool) -> Dataset:
    """CIFAR-10 from the cache, else from $FASTCIFAR_DATA, ./data or the cache folder, else from the network."""
    cache_folder, data_folder = cache.cache_folder(cache_dir), os.environ.get("FASTCIFAR_DATA")
    download_folder = Path(data_folder).expanduser() if data_folder else cache_folder
    archive = download_folder / download.ARCHIVE_NAME

    def build() -> Dataset:
        folders = (download_folder, Path("data"), cache_folder)
        paths = [folder / name for folder in folders for name in ("", download.ARCHIVE_NAME)]
        found = next((p for p in paths if p.is_file() or (p / OFFICIAL_FOLDER).is_dir()), None)
        if found is None:
            download.fetch(archive, progress)
        path = found or archive
        raw = sources.read_source(path, progress)
        if not raw.is_official:
            raise DataError(f"{path}: not the published CIFAR-10 (its checksums differ); download {download.URL} "
                            f"again, or use it as it is with --data {path}")  # fmt: skip
        return _make_dataset(raw, "cifar10")

    try:
        return cache.load_or_build("cifar10", build, cache_dir)
    except download.DownloadError as error:
        raise _MissingCifar10Error(
            f"CIFAR-10 was not found and cannot be downloaded ({error}): download {download.URL} to {archive}"
        ) from error


def _load_synthetic(n_train: int | None, cache_dir: str | None, progress: bool) -> Dataset:
    """The synthetic set with at least n_train training images, or all of it."""
    if n_train is not None and n_train <= _MAX_UNCACHED_SYNTHETIC_IMAGES:
        # The first images of the whole set, in whole groups of ten, which hold each class once
        n = max(10, math.ceil(n_train / 10) * 10)
        raw = RawData(synthetic.CLASSES, *synthetic.make(n, max(10, math.ceil(n / 50) * 10))[:4])
        return replace(_make_dataset(raw, "synthetic"), mean=synthetic.MEAN, std=synthetic.STD)

    def build() -> Dataset:
        with progress_bar("drawing the synthetic set", progress):
            return _make_dataset(RawData(synthetic.CLASSES, *synthetic.make()[:4]), "synthetic")

    return cache.load_or_build(f"synthetic-{synthetic.VERSION}", build, cache_dir)


def _make_dataset(raw: RawData, name: str) -> Dataset:
    """Adds mean, std and digest. The name becomes cifar10 if the content is CIFAR-10's."""
    arrays = raw.x_train, raw.y_train, raw.x_test, raw.y_test
    mean, std = channel_mean_std(raw.x_train)
    name = "cifar10" if raw.is_official or is_cifar10(raw) else name
    return Dataset(name, raw.classes, *arrays, mean, std, dataset_digest(raw.classes, arrays))
