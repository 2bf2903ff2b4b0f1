"""Tiny data sets of each kind for the tests of fastcifar.data, and what these tests do with them.

Images are random; `random_images` with equal arguments returns equal pixels, so tests can compare what was read.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcifar.data import download, official
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load
from fastcifar.data.messages import DataError
from fastcifar.data.official import CIFAR10, OfficialSet, decode_official

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_path(path: Path, **options: Any) -> Dataset:
    return load(str(path), progress=False, **options)


def assert_refused(path: Path, *words: str) -> None:
    """Asserts that loading ends in a one-line DataError that contains all words, and writes no cache file."""
    with pytest.raises(DataError) as caught:
        load_path(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not list(Path(os.environ["FASTCIFAR_CACHE"]).glob("*"))


def random_images(n: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, 32, 32, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def encode_image(image: np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def make_png(
    width: int, height: int, rows: bytes = bytes(99), depth: int = 8, colour: int = 2, transparent: bytes = b""
) -> bytes:
    """A PNG with this header and these rows, a byte 0 before each; by default they are far fewer than it claims.

    depth: bits of a channel. colour: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha. transparent: content of tRNS.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    header += chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Sets as files: a dictionary from the name of each file to its content, and ways to write it to disk


def make_image_files(classes: tuple[str, ...] = ("cat", "dog"), n_train: int = 3, n_test: int = 2) -> dict[str, bytes]:
    """PNG files `<split>/<class>/<number>.png`, n_train and n_test of each class, in order of name."""
    images = iter(random_images(len(classes) * (n_train + n_test)))
    return {
        f"{split}/{name}/{i:02}.png": encode_image(next(images))
        for split, n in (("train", n_train), ("test", n_test))
        for name in classes
        for i in range(n)
    }


CIFAR100_CLASSES = tuple(f"class {i:02}" for i in range(100))
CIFAR100_COLOURS = np.random.default_rng(100).integers(0, 256, (100, 3), dtype=np.uint8)


def make_official_files(n: int = 20, classes: tuple[str, ...] = CIFAR10_CLASSES) -> dict[str, bytes]:
    """The seven files of CIFAR-10's layout, n images each, in pickle protocol 2 with keys of bytes, as published."""
    files = {"batches.meta": pickle.dumps({b"label_names": [c.encode() for c in classes], b"num_vis": 3072}, 2)}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        planes = random_images(n, index).transpose(0, 3, 1, 2).reshape(n, 3072).copy()
        labels = [i % len(classes) for i in range(n)]
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": planes, b"filenames": [b"x.png"] * n}
        files[name] = pickle.dumps(batch, 2)
    return files


def make_cifar100_files(n: int = 200, n_test: int = 100) -> dict[str, bytes]:
    """The three files of CIFAR-100's layout: noise with a patch whose colour tells the class."""
    names = [name.encode() for name in CIFAR100_CLASSES]
    coarse = [b"group %d" % i for i in range(20)]
    files = {"meta": pickle.dumps({b"fine_label_names": names, b"coarse_label_names": coarse}, 2)}
    for split, count in (("train", n), ("test", n_test)):
        fine = [i % 100 for i in range(count)]
        images = random_images(count, seed=len(split))
        images[:, 8:24, 8:24] = CIFAR100_COLOURS[fine][:, None, None]
        batch = {
            b"filenames": [b"x.png"] * count, b"batch_label": b"one of one", b"fine_labels": fine,
            b"coarse_labels": [label % 20 for label in fine],
            b"data": images.transpose(0, 3, 1, 2).reshape(count, 3072),
        }  # fmt: skip
        files[split] = pickle.dumps(batch, 2)
    return files


def in_official_folder(files: dict[str, bytes], folder: str = "cifar-10-batches-py") -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def declare_published(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], published: OfficialSet = CIFAR10
) -> None:
    """Makes fastcifar take these files, or the images in them, for the published ones."""
    for name in published.sha256:
        monkeypatch.setitem(published.sha256, name, hashlib.sha256(files[name]).hexdigest())
    if published is CIFAR10:
        raw = decode_official(Path("made here"), published, files)
        for split in ("train", "test"):
            images, labels = getattr(raw, f"x_{split}"), getattr(raw, f"y_{split}")
            monkeypatch.setitem(official.CIFAR10_CONTENT, split, (len(labels), official.content_digest(images, labels)))


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Writes the files, then members without content, such as links."""
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def serve_download(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[OfficialSet]:
    """A download brings these files as an archive. Returns the list of the sets that are asked for, as it grows."""
    asked = []

    def fetch(official: OfficialSet, target: Path, progress: bool) -> None:
        asked.append(official)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tar(target, files, "w:gz")

    monkeypatch.setattr(download, "fetch", fetch)
    return asked


# Sets as arrays


def make_arrays(n_train: int = 12, n_test: int = 6, k: int = 3) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test and y_test with labels 0, 1, .. k-1, 0, 1, ..."""
    y = np.arange(n_train + n_test) % k
    x = random_images(n_train + n_test)
    return {"x_train": x[:n_train], "y_train": y[:n_train], "x_test": x[n_train:], "y_test": y[n_train:]}


def write_npz(path: Path, **changes: np.ndarray | None) -> Path:
    """Writes the arrays of `make_arrays` with some replaced, added or, for None, left out."""
    np.savez(path, **{name: a for name, a in (make_arrays() | changes).items() if a is not None})
    return path
