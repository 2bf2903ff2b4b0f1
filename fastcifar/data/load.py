"""`load`: finds a data set by name or path and returns it as uint8 arrays, from the cache where possible.

source (download, folder, archive, arrays or synthetic) -> raw arrays -> `Dataset` -> cache -> subset -> training.
"""

import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

from fastcifar.config.config import SMOKE_IMAGES, Config
from fastcifar.data import cache, download, sources, synthetic
from fastcifar.data.checks import RawData
from fastcifar.data.dataset import Dataset, largest_subset, make_dataset, take_subset
from fastcifar.data.messages import DataError, print_warning, printable, progress_bar
from fastcifar.data.official import CIFAR10, OFFICIAL_SETS, OfficialSet, find_official

_MAX_UNCACHED_SYNTHETIC_IMAGES = 10_000  # drawn in about a second


class _MissingError(DataError):
    """An official data set is not on this machine and cannot be downloaded."""


def load(
    source: str = "auto",
    *,
    subset: int | None = None,
    smoke: bool = False,
    test_split: float = 0,
    cache_dir: str | None = None,
    progress: bool = True,
    or_synthetic: bool = True,
) -> Dataset:
    """The data set at `source`: images uint8 [N, 32, 32, 3], labels int64 [N] in 0..K-1.

    Args:
        source: "cifar10"; "cifar100"; "auto", which is CIFAR-10 or, without a network to download it, the synthetic
            set with a warning; "synthetic"; or the path of a folder, tar or .npz.
        subset: number of training images to take, equally many of each class. None takes all.
        smoke: take at most SMOKE_IMAGES training images, or at most `subset` if it is given; a set without so many
            gives what it has.
        test_split: fraction of each class that becomes the test images, always the same ones, of a set without any.
        cache_dir: folder of cached data sets; see `cache.cache_folder` for the default.
        progress: show on stderr how far a download or decoding has come.
        or_synthetic: whether "auto" may fall back to the synthetic set; else that is an error.

    Raises:
        DataError: the data set is missing, damaged or of no supported kind, or too small for `subset`.
    """
    n_train = SMOKE_IMAGES if smoke and subset is None else subset
    if test_split and source in ("auto", "synthetic", *OFFICIAL_SETS):
        raise DataError(f"{source}: has test images of its own; leave test_split out")
    if source == "synthetic":
        dataset = _load_synthetic(n_train, cache_dir, progress)
    elif source in OFFICIAL_SETS:
        dataset = _load_official(OFFICIAL_SETS[source], cache_dir, progress)
    elif source == "auto":
        try:
            dataset = _load_official(CIFAR10, cache_dir, progress)
        except _MissingError as error:
            if not or_synthetic:
                raise DataError(f'{error}; or ask for the built-in synthetic images with data="synthetic"') from error
            print_warning(
                f"{error}. TRAINING ON THE BUILT-IN SYNTHETIC SET INSTEAD: its accuracy says nothing about CIFAR-10"
            )
            dataset = _load_synthetic(n_train, cache_dir, progress)
    else:
        dataset = _load_path(Path(os.path.expanduser(source)), cache_dir, progress, test_split)
    if dataset.resized and progress:
        print(f"fastcifar: {dataset.resized:,} images are resized to 32x32 pixels, the size that the network trains on",
              file=sys.stderr, flush=True)  # fmt: skip
    if n_train is None:
        return dataset
    return take_subset(dataset, min(n_train, largest_subset(dataset)) if smoke else n_train)


def load_of(config: Config, progress: bool, or_synthetic: bool = True) -> Dataset:
    """The data set that a config names, as `load`."""
    data = config.data
    return load(data.source, subset=data.subset, smoke=config.run.smoke, test_split=data.test_split,
                cache_dir=config.machine.cache_dir, progress=progress, or_synthetic=or_synthetic)  # fmt: skip


def _load_path(path: Path, cache_dir: str | None, progress: bool, test_split: float) -> Dataset:
    key = sources.fingerprint(path)[:32] + (f"-test-{test_split:g}" if test_split else "")
    name = re.sub(r"(\.tar)?\.(tar|gz|tgz|xz|txz|bz2|tbz2?|npz)$", "", path.resolve().name, flags=re.IGNORECASE)
    name = printable(name)  # it is printed, and written to files of UTF-8
    if name in (*OFFICIAL_SETS, "synthetic"):
        name += "-custom"  # those names state what the content is

    def build() -> Dataset:
        return make_dataset(sources.read_source(path, progress, test_split), name)

    dataset = cache.load_or_build(key, build, cache_dir)
    # The key stands for the content: the cached name may be that of a copy of the file elsewhere.
    return dataset if dataset.name in OFFICIAL_SETS else replace(dataset, name=name)


def locate(official: OfficialSet, cache_dir: str | None = None) -> tuple[Path | None, Path]:
    """(where the data set lies, where it would be downloaded to).

    It lies in $FASTCIFAR_DATA, ./data or the cache folder, as a folder or an archive; None when it is in none of them.
    """
    cache_folder, data_folder = cache.cache_folder(cache_dir), os.environ.get("FASTCIFAR_DATA")
    download_folder = Path(data_folder).expanduser() if data_folder else cache_folder
    for folder in (download_folder, Path("data"), cache_folder):
        for path in (folder / official.folder, folder, folder / official.archive):
            in_folder = find_official(path)
            if path.is_file() or (in_folder and in_folder[0] is official):
                return path, download_folder / official.archive
    return None, download_folder / official.archive


def _load_official(official: OfficialSet, cache_dir: str | None, progress: bool) -> Dataset:
    """The data set from the cache, else from where `locate` finds it, else from the network."""
    found, archive = locate(official, cache_dir)

    def build() -> Dataset:
        if found is None:
            download.fetch(official, archive, progress)
        path = found or archive
        dataset = make_dataset(sources.read_source(path, progress), f"{official.name}-custom")
        if dataset.name != official.name:
            raise DataError(f"{path}: not the published {official.title} (its checksums differ); download "
                            f"{official.url} again, or use it as it is with --data {path}")  # fmt: skip
        return dataset

    try:
        return cache.load_or_build(official.name, build, cache_dir)
    except download.DownloadError as error:
        raise _MissingError(f"{official.title} was not found and cannot be downloaded ({error}): download "
                            f"{official.url} to {archive}") from error  # fmt: skip


def _load_synthetic(n_train: int | None, cache_dir: str | None, progress: bool) -> Dataset:
    """The synthetic set with at least n_train training images, or all of it."""
    if n_train is not None and n_train <= _MAX_UNCACHED_SYNTHETIC_IMAGES:
        # The first images of the whole set, in whole groups of ten, which hold each class once
        n = max(10, math.ceil(n_train / 10) * 10)
        raw = RawData(synthetic.CLASSES, *synthetic.make(n, max(10, math.ceil(n / 50) * 10))[:4])
        return replace(make_dataset(raw, "synthetic"), mean=synthetic.MEAN, std=synthetic.STD)

    def build() -> Dataset:
        with progress_bar("drawing the synthetic set", progress):
            return make_dataset(RawData(synthetic.CLASSES, *synthetic.make()[:4]), "synthetic")

    return cache.load_or_build(f"synthetic-{synthetic.VERSION}", build, cache_dir)
