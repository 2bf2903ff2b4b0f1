"""Tests of files damaged at random: each must load as a data set or end in one line, and must do nothing else.

FASTCIFAR_FUZZ_EXAMPLES sets the number of damaged files of each format (25; a thorough run takes 1000).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from mutation import damaged, edits, many
from tiny_sets import (
    encode_image,
    in_official_folder,
    load_path,
    make_image_files,
    make_official_files,
    random_images,
    write_folder,
    write_npz,
    write_tar,
)

from fastcifar.data.dataset import Dataset
from fastcifar.data.messages import DataError

# Each function writes a sound set and returns the path to load and the file to damage


def write_official_tar(root: Path) -> tuple[Path, Path]:
    path = write_tar(root / "a.tar.gz", in_official_folder(make_official_files(2, classes=("a", "b"))), "w:gz")
    return path, path


def write_official_folder(root: Path) -> tuple[Path, Path]:
    folder = write_folder(root / "set", in_official_folder(make_official_files(2, classes=("a", "b"))))
    return folder, folder / "cifar-10-batches-py" / "data_batch_2"


def write_image_tar(root: Path) -> tuple[Path, Path]:
    path = write_tar(root / "a.tar", make_image_files())
    return path, path


def write_image_folder(image_format: str) -> Callable[[Path], tuple[Path, Path]]:
    def write(root: Path) -> tuple[Path, Path]:
        image = encode_image(random_images(1)[0], image_format)
        folder = write_folder(root / "toy", make_image_files() | {f"train/cat/x.{image_format}": image})
        return folder, folder / "train" / "cat" / f"x.{image_format}"

    return write


def write_arrays(root: Path) -> tuple[Path, Path]:
    path = write_npz(root / "a.npz", classes=np.array(["a", "b", "c"]))
    return path, path


def write_arrays_and_cache(root: Path) -> tuple[Path, Path]:
    path = write_npz(root / "a.npz")
    load_path(path)
    (cached,) = Path(os.environ["FASTCIFAR_CACHE"]).iterdir()
    return path, cached


FORMATS = {
    "official tar.gz": write_official_tar,
    "official batch": write_official_folder,
    "image tar": write_image_tar,
    "png": write_image_folder("png"),
    "jpeg": write_image_folder("jpeg"),
    "npz": write_arrays,
    "cache": write_arrays_and_cache,
}
FORBIDDEN_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")
forbidden_calls: list[str] = []
"""Filled by the audit hook while `is_auditing`; a hook cannot be removed again."""
is_auditing = False


def audit(event: str, arguments: tuple) -> None:
    if is_auditing and event in FORBIDDEN_EVENTS:
        forbidden_calls.append(event)


sys.addaudithook(audit)


def read_all_files(root: Path) -> dict[str, bytes]:
    """Content by path of all files below `root`, without those of the cache."""
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and "cache" not in p.relative_to(root).parts}


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_give_a_data_set_or_one_line(tmp_path, kind, capfd):
    source, victim = FORMATS[kind](tmp_path)
    original = victim.read_bytes()
    sound_digest = load_path(source).digest if kind == "cache" else None

    @many
    @given(edits=edits)
    def load_damaged(edits):
        global is_auditing
        victim.write_bytes(damaged(original, edits))
        before = read_all_files(tmp_path)
        is_auditing = True
        try:
            dataset = load_path(source)
            assert is_valid(dataset)
            assert sound_digest in (None, dataset.digest)  # a damaged cache never gives other data
        except DataError as error:
            assert "\n" not in str(error) and str(error)
            assert kind != "cache"
        finally:
            is_auditing = False
        assert read_all_files(tmp_path) == before and not forbidden_calls

    load_damaged()
    assert all(line.startswith("warning: ") for line in capfd.readouterr().err.splitlines())


def is_valid(dataset: Dataset) -> bool:
    k = len(dataset.classes)
    return all(
        x.dtype == np.uint8
        and x.shape == (len(y), 32, 32, 3)
        and x.flags.c_contiguous
        and y.dtype == np.int64
        and len(y)
        and 0 <= y.min() <= y.max() < k
        for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test))
    ) and bool(np.isfinite(dataset.mean + dataset.std).all() and min(dataset.std) > 0)
