"""Limits on the size of a source, so that a damaged or malicious file cannot exhaust memory or disk.

The readers of folders, tars and .npz files check these limits before they read or decompress.
"""

from __future__ import annotations

from pathlib import Path

from fastcifar.data.errors import DataError

MAX_DATASET_BYTES = 4 << 30
"""Of a whole data set, decompressed."""
MAX_IMAGE_BYTES = 1 << 20
"""Of one encoded PNG or JPEG file."""
MAX_BATCH_BYTES = 192 << 20
"""Of one official file; the largest published one, the training images of CIFAR-100, has 155 MB."""
MAX_FILES = 2_000_000
"""Entries of one tar, of any kind."""


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a file. Raises DataError if it is larger than max_bytes, OSError if it is unreadable."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path}: larger than {max_bytes >> 20} MiB, too large for a file of a data set; remove it")
    return data
