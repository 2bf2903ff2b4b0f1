"""Reads tars, plain or compressed, of images or of the official batches.

A tar is read once, forward, in memory: nothing is unpacked to disk, and sizes are checked before data is read. So
unsafe names, links and decompression bombs do no harm. `sources` calls this for every file that is not an .npz.
"""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fastcifar.data import checks
from fastcifar.data.checks import RawData
from fastcifar.data.images import SPLITS, decode_images, sort_by_class
from fastcifar.data.messages import DataError
from fastcifar.data.official import OFFICIAL_SETS, decode_official
from fastcifar.data.pixels import SUFFIXES

_FOLDERS = {official.folder: official for official in OFFICIAL_SETS.values()}
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by the first two bytes


def read_tar(path: Path, progress: bool) -> RawData:
    """The data set in a tar, plain or compressed with gzip, bzip2 or xz.

    If it holds official batch files these are decoded, otherwise its images. Raises DataError for entries that are
    unsafe, misplaced or too large and for a damaged end; decompressors raise exceptions of their own.
    """
    batches: dict[str, dict[str, bytes]] = {}  # folder -> file -> content
    class_folders: set[tuple[str, ...]] = set()
    with path.open("rb") as file:
        opener = _OPENERS.get(file.read(2), open)
    with opener(path, "rb") as file:
        stream = _LimitedStream(file)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]  # uses read, seek and tell
            decoded = decode_images(_read_members(path, tar, batches, class_folders), path, progress)
        # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros
        if not stream.last_block or stream.last_block.strip(b"\0"):
            count = len(decoded[0]) + sum(map(len, batches.values()))
            raise DataError(f"{path}: damaged or cut off after {count} files; download it again")
        while stream.read(1 << 20):  # decompressors verify their checksum at the end of the stream
            pass
    names, pixels, resized = decoded
    outside = next((name for name in names if not _is_in_split(name)), None)
    if outside and batches:
        raise _misplaced(path, outside)
    if outside:
        names, class_folders = _as_training_images(path, names, class_folders)
    if len(batches) > 1:
        raise DataError(f"{path}: holds both {' and '.join(sorted(batches))}; make an archive of one of them")
    for folder, files in batches.items():
        return decode_official(path, _FOLDERS[folder], files)
    return sort_by_class(path, names, pixels, resized, {folder for folder in class_folders if folder[0] in SPLITS})


def _is_in_split(name: str) -> bool:
    return name.partition("/")[0] in SPLITS


def _misplaced(path: Path, name: str) -> DataError:
    return DataError(f"{path}: {name} is not in train/<class>/ or test/<class>/, or in <class>/ in a set without "
                     "these; move or remove it")  # fmt: skip


def _as_training_images(
    path: Path, names: list[str], folders: set[tuple[str, ...]]
) -> tuple[list[str], set[tuple[str, ...]]]:
    """Names and class folders of a set without train and test: <class>/<file>, perhaps in one folder, in train.

    Raises DataError when the classes lie in more than one folder.
    """
    files = [tuple(name.split("/")) for name in names]
    around = {file[:-2] for file in files}
    if len(around) > 1:
        one, other = ("/".join((*folder, "<class>")) for folder in sorted(around)[:2])
        raise DataError(f"{path}: has images in {one}/ and in {other}/; keep all classes in one folder")
    (outer,) = around
    classes: set[tuple[str, ...]] = {("train", folder[-1]) for folder in folders if folder[:-1] == outer}
    return ["/".join(("train", *file[-2:])) for file in files], classes


class _LimitedStream:
    """A forward-only file for tarfile that raises ReadError when an archive exceeds the limits on its size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self.last_block = b""
        """The bytes that the latest read returned."""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("the archive points backwards")
        while self._position < position and self.read(min(position - self._position, 1 << 20)):
            pass
        return self._position

    def read(self, n: int) -> bytes:
        # tarfile itself reads long-name records whole, of any size that the archive claims; below 0 is all there is
        if n < 0 or n > checks.MAX_BATCH_BYTES + tarfile.BLOCKSIZE or self._position > checks.MAX_DATASET_BYTES:
            mib, gib = checks.MAX_BATCH_BYTES >> 20, checks.MAX_DATASET_BYTES >> 30
            raise tarfile.ReadError(f"more than {mib} MiB in one file or {gib} GiB in total")
        self.last_block = self._stream.read(n)
        self._position += len(self.last_block)
        return self.last_block


def _read_members(
    path: Path, tar: tarfile.TarFile, batches: dict[str, dict[str, bytes]], class_folders: set[tuple[str, ...]]
) -> Iterator[tuple[str, bytes]]:
    """Yields (train/<class>/<file>, content) of each image, with at most one folder around train and test removed.

    The name of an image of a set without train and test is yielded as it is. Adds official batch files to `batches` and
    each folder that may be one of a class to `class_folders` on the way: (split, class), or its name as it is.
    """
    outer_folders: set[tuple[str, ...]] = set()
    outside: str | None = None
    for _ in range(checks.MAX_FILES):
        member = tar.next()
        tar.members.clear()  # type: ignore[attr-defined]  # else tarfile stores an object for each of the members
        if member is None:
            return
        parts = PurePosixPath(member.name).parts
        if ".." in parts or member.name.startswith("/"):
            raise DataError(f"{path}: holds the unsafe name {member.name}; make the archive again with plain names")
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        split_at = next((i for i, part in enumerate(parts[:2]) if part in SPLITS), None)
        if member.isdir():
            if parts and (split_at is None or len(parts) == split_at + 2):
                class_folders.add(parts[split_at:])
        elif parts[-1].lower().endswith(SUFFIXES):
            data = _read_member(path, tar, member, checks.MAX_IMAGE_BYTES)
            if len(parts) not in ((2, 3) if split_at is None else (split_at + 3,)):
                raise _misplaced(path, member.name)
            if split_at is None:
                outside = outside or member.name
            else:
                outer_folders.add(parts[:split_at])
            if outside and outer_folders:
                raise _misplaced(path, outside)
            if len(outer_folders) > 1:
                raise DataError(f"{path}: has train and test in more than one folder; remove all but one")
            yield "/".join(parts[split_at:]), data
        elif len(parts) > 1 and parts[-2] in _FOLDERS and parts[-1] in _FOLDERS[parts[-2]].files:
            batches.setdefault(parts[-2], {})[parts[-1]] = _read_member(path, tar, member, checks.MAX_BATCH_BYTES)
    raise DataError(f"{path}: more than {checks.MAX_FILES} files; make an archive of the data set alone")


def _read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes:
    """The content of the member at which the tar stands. Raises DataError unless it is a plain, whole, small file."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise DataError(f"{path}: {member.name} is a link or device; make the archive again with plain files")
    if not 0 <= member.size <= max_bytes:
        raise DataError(f"{path}: {member.name} claims {member.size} bytes, too large for a file of a data set; "
                        "remove it from the archive")  # fmt: skip
    data = tar.fileobj.read(member.size)  # tarfile has just read the header, so the content comes next
    if len(data) < member.size:
        raise DataError(f"{path}: ends inside {member.name}; download it again")
    return data
