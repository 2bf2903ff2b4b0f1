"""Writes files atomically and locks folders.

The cache of data sets and every file of a run folder are written through this module.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], sync: bool = True) -> None:
    """Calls write(file) on a temporary file beside `path`, fsyncs it with `sync`, and renames it to `path`.

    A reader finds the old file or the new one, never a part of one; with `sync` even after a power cut. Missing parent
    folders are made. Raises OSError, with the path, if the file cannot be written (disk full, read-only); then the old
    file is unchanged and no temporary file remains.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)  # without it a power cut can undo the rename
    except BaseException as error:  # an interrupt too must leave no temporary file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


def require_writable(folder: Path) -> None:
    """Makes a folder where it is missing, and tries to write in it. OSError, with the folder, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Locks a run folder against other processes while the context lasts; the lock ends with the process at the latest.

    Raises ValueError if another process has locked the folder. On a file system without locks it does nothing.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder}: another process trains in it; wait for it, or choose another folder"
            raise ValueError(message) from error
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)
