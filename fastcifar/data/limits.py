"""Limits on what is read, so that a damaged or malicious file cannot exhaust memory or disk, or stop the program.

The readers of folders, tars and .npz files check these limits before they read or decompress.
"""

from __future__ import annotations

import stat
from pathlib import Path

from fastcifar.data.errors import DataError

MAX_DATASET_BYTES = 4 << 30
"""Of a whole data set, decompressed."""
MAX_IMAGE_BYTES = 1 << 20
"""Of one encoded PNG or JPEG file."""
MAX_PHOTO_BYTES = 64 << 20
"""Of one encoded image of any size, as `fastcifar predict` takes it."""
MAX_PHOTO_PIXELS = 25_000_000
"""Of the same. Decoding takes 4 to 16 bytes for each (most for WebP), so up to 400 MB."""
MAX_BATCH_BYTES = 192 << 20
"""Of one official file; the largest published one, the training images of CIFAR-100, has 155 MB."""
MAX_FILES = 2_000_000
"""Entries of one tar, of any kind."""


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a file. Raises DataError if it is none or has more than max_bytes, OSError if unreadable.

    A folder, a device or a named pipe is no file: opening a pipe would wait for a writer without an end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: not a file but a folder, pipe or device; remove it")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path}: larger than {max_bytes >> 20} MiB, too large for what it should be; remove it")
    return data
