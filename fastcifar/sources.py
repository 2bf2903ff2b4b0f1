"""Where data sets lie: folders and tars of images or of the official batches, .npz files.

Nothing is written: archives are read as streams in memory, under limits on sizes and counts, so neither a path in an
archive nor a link nor a decompression bomb can do harm. What is wrong ends in a DataError of one line.

Letters: N images of H = W = 32 pixels.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import lzma
import os
import sys
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from fastcifar.formats import MAX_TOTAL, OFFICIAL_FOLDER, OFFICIAL_MD5, DataError, Raw, check, npz, official

_SPLITS = ("train", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_MAX_IMAGE, _MAX_BATCH = 1 << 20, 64 << 20  # bytes of one file; an official batch has 31 MB
_MAX_FILES = 2_000_000
_DECODE_AT_ONCE = 256  # images handed to a thread: large enough that hand-over costs nothing
_KINDS = (
    f"give a folder or tar with {OFFICIAL_FOLDER} or with train/<class>/*.png|jpg and test/<class>/..., or an .npz "
    "with x_train, y_train, x_test, y_test"
)


@contextmanager
def bar(text: str, progress: bool) -> Iterator[Callable[[int], None]]:
    """On a terminal a bar that moves with each call of what it gives; elsewhere one line; both on stderr."""
    if not progress or not sys.stderr.isatty():
        if progress:
            print(f"fastcifar: {text}", file=sys.stderr, flush=True)
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=None)
        yield lambda n: shown.advance(task, n)


def read(path: Path, progress: bool = True) -> Raw:
    """Whatever `path` holds. Raises DataError for anything that is not a whole, well-formed data set."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's remarks on odd files would come before our one line
            return check(path, _read(path, progress))
    except DataError:
        raise
    except Exception as error:  # the one boundary: parsers of four formats fail in too many ways to list
        what = str(error) or type(error).__name__
        raise DataError(f"{path}: damaged or not a data set ({what}); fetch or make it again") from error


def fingerprint(path: Path) -> str:
    """Hex key that changes with the content: of a file its bytes, of a folder the names, sizes and times in it."""
    try:
        kind = _kind(path)
        if kind == "file":
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        roots = [_official_folder(path)] if kind == "official" else [path / split for split in _SPLITS]
        total = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape"))
        for root in roots:
            for folder, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(names):
                    stat = os.stat(os.path.join(folder, name))
                    entry = f"{os.path.relpath(folder, path)}/{name}:{stat.st_size}:{stat.st_mtime_ns}\n"
                    total.update(entry.encode(errors="surrogateescape"))
        return total.hexdigest()
    except OSError as error:
        raise DataError(
            f"{error.filename or path}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def _kind(path: Path) -> str:
    """file, official or images."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {_KINDS}")
    if path.is_file():
        return "file"
    if path.is_dir():
        if _official_folder(path).is_dir():
            return "official"
        if any((path / split).is_dir() for split in _SPLITS):
            return "images"
    raise DataError(f"{path}: holds no data set; {_KINDS}")


def _official_folder(path: Path) -> Path:
    return path if path.name == OFFICIAL_FOLDER or (path / "data_batch_1").exists() else path / OFFICIAL_FOLDER


def _read(path: Path, progress: bool) -> Raw:
    kind = _kind(path)
    if kind == "official":
        root = _official_folder(path)
        found = {name: _bytes(root / name, _MAX_BATCH) for name in OFFICIAL_MD5 if (root / name).exists()}
        return official(root, found)
    if kind == "images":
        folders: set[tuple[str, ...]] = set()
        return _arrange(path, *_decode(_folder_files(path, folders), path, progress), folders)
    with path.open("rb") as file:
        magic = file.read(6)
    return npz(path) if magic.startswith(b"PK") else _tar(path, magic, progress)


def _bytes(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"{path}: larger than {limit >> 20} MiB; such a file is no part of a data set")
    return data


# Image folders and tars


def _folder_files(path: Path, folders: set[tuple[str, ...]]) -> Iterator[tuple[str, bytes]]:
    """(train/<class>/<file>, content) below `path`, in order of name; `folders` takes the class folders met."""
    for split in _SPLITS:
        for folder in sorted(f for f in (path / split).glob("*") if f.is_dir() and not f.name.startswith(".")):
            folders.add((split, folder.name))
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file():
                    yield f"{split}/{folder.name}/{file.name}", _bytes(file, _MAX_IMAGE)


class _Stream:
    """What tarfile needs of a decompressed stream: forward only, within the limits, so that no bomb goes off."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0
        self.last = b""  # what was read last

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> int:
        if to < self._at:
            raise tarfile.ReadError("the archive points backwards")
        while self._at < to and self.read(min(to - self._at, 1 << 20)):
            pass
        return self._at

    def read(self, n: int) -> bytes:
        if n > _MAX_BATCH + 512 or self._at > MAX_TOTAL:
            raise tarfile.ReadError(f"more than {_MAX_BATCH >> 20} MiB in a file or {MAX_TOTAL >> 30} GiB in all")
        self.last = self._stream.read(n)
        self._at += len(self.last)
        return self.last


def _tar(path: Path, magic: bytes, progress: bool) -> Raw:
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    batches: dict[str, bytes] = {}
    folders: set[tuple[str, ...]] = set()
    with openers.get(magic[:2], open)(path, "rb") as file:
        stream = _Stream(file)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]  # reads, seeks, tells
            names, images = _decode(_tar_files(path, tar, batches, folders), path, progress)
        if not stream.last or stream.last.strip(b"\0"):  # tarfile takes a bad header for the end; a true end is zeros
            raise DataError(f"{path}: damaged or cut off after {len(names) + len(batches)} files; fetch it again")
        while stream.read(1 << 20):  # to the end, where compressors keep their checksum
            pass
    return official(path, batches) if batches else _arrange(path, names, images, folders)


def _tar_files(
    path: Path, tar: tarfile.TarFile, batches: dict[str, bytes], folders: set[tuple[str, ...]]
) -> Iterator[tuple[str, bytes]]:
    """The same of a tar, with at most one folder around train and test; official batches go into `batches`."""
    tops: set[tuple[str, ...]] = set()
    for _ in range(_MAX_FILES):
        member = tar.next()
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep two million of them
        if member is None:
            return
        parts = PurePosixPath(member.name).parts
        if ".." in parts or member.name.startswith("/"):
            raise DataError(f"{path}: holds the unsafe name {member.name}; make the archive again with plain names")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        at = next((i for i, part in enumerate(parts[:2]) if part in _SPLITS), None)
        if member.isdir():
            if at is not None and len(parts) == at + 2:
                folders.add(parts[at:])
            continue
        image = parts[-1].lower().endswith(_SUFFIXES)
        batch = len(parts) > 1 and parts[-2] == OFFICIAL_FOLDER and parts[-1] in OFFICIAL_MD5
        if not image and not batch:
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DataError(f"{path}: {member.name} is a link or device; make the archive again with plain files")
        if member.size > (_MAX_IMAGE if image else _MAX_BATCH):
            raise DataError(f"{path}: {member.name} claims {member.size} bytes; it is no part of a data set")
        data = tar.fileobj.read(member.size)  # stands at the member's first byte
        if len(data) < member.size:
            raise DataError(f"{path}: ends inside {member.name}; fetch it again")
        if batch:
            batches[parts[-1]] = data
            continue
        if at is None or len(parts) != at + 3:
            raise DataError(f"{path}: {member.name} is not in train/<class>/ or test/<class>/; move or remove it")
        tops.add(parts[:at])
        if len(tops) > 1:
            raise DataError(f"{path}: has train and test in more than one folder; keep one")
        yield "/".join(parts[at:]), data
    raise DataError(f"{path}: more than {_MAX_FILES} files; it is no data set for this program")


def _decode(files: Iterator[tuple[str, bytes]], path: Path, progress: bool) -> tuple[list[str], np.ndarray]:
    """Names, and pixels uint8 [N, 32, 32, 3]. Threads decode while the archive is still being unpacked."""
    names: list[str] = []
    done: list[np.ndarray] = [np.empty((0, 32, 32, 3), np.uint8)]
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar(f"decoding the images of {path.name}", progress) as advance:
        while chunk := list(itertools.islice(files, _DECODE_AT_ONCE)):
            names += [name for name, _ in chunk]
            waiting.append(pool.submit(_decode_some, path, chunk))
            advance(len(chunk))
            if len(waiting) > 64:  # bounds the memory that undecoded files take
                done.append(waiting.popleft().result())
        done += [future.result() for future in waiting]
    return names, np.concatenate(done)


def _decode_some(path: Path, files: list[tuple[str, bytes]]) -> np.ndarray:
    from PIL import Image  # here, so that a run from the cache does not pay for it

    pixels = np.empty((len(files), 32, 32, 3), np.uint8)
    for row, (name, data) in enumerate(files):
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))  # reads the header alone
            if image.size == (32, 32):
                pixels[row] = np.asarray(image.convert("RGB"))
        except Exception as error:
            raise DataError(f"{path}: {name} is not a readable PNG or JPEG ({error}); replace it") from error
        if image.size != (32, 32):
            raise DataError(f"{path}: {name} has {image.size[0]}x{image.size[1]} pixels; expected 32x32: resize it")
    return pixels


def _arrange(path: Path, names: list[str], images: np.ndarray, folders: set[tuple[str, ...]]) -> Raw:
    """Images in order of name, labels in order of class name; for CIFAR-10 that is the official order of classes."""
    keys = [tuple(name.split("/")) for name in names]
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: holds {len(keys) - len(set(keys))} files twice; make the archive again")
    used = {key[:2] for key in keys}
    empty = ["/".join(folder) for folder in sorted(folders - used)]
    if empty:
        raise DataError(f"{path}: no images in {', '.join(empty)}; add .png or .jpg files or remove the folder")
    train, test = ({cls for split, cls in used if split == wanted} for wanted in _SPLITS)
    if not train:
        raise DataError(f"{path}: no images in train/<class>/; {_KINDS}")
    if train != test:
        odd = ", ".join(sorted(train ^ test))
        raise DataError(f"{path}: train and test differ in their classes ({odd}); each class needs images in both")
    classes = sorted(train)
    parts: list[np.ndarray] = []
    for split in _SPLITS:
        rows = sorted((key, row) for row, key in enumerate(keys) if key[0] == split)
        parts += [images[[row for _, row in rows]], np.array([classes.index(key[1]) for key, _ in rows], np.int64)]
    return Raw(tuple(classes), parts[0], parts[1], parts[2], parts[3])
