"""Reads data sets of encoded images: finds them in folders, decodes them, and sorts them by class.

An image belongs to a split and a class by its name, `train/<class>/<file>` or `test/<class>/<file>`. Tars of images
are opened by `archives` and decoded here.

Letters: N images of H = W = 32 pixels.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastcifar.data import checks
from fastcifar.data.checks import Images, RawData
from fastcifar.data.messages import SUPPORTED_SOURCES, DataError, print_warning, printable, progress_bar
from fastcifar.data.pixels import FORMATS, SUFFIXES, decode_image

SPLITS = ("train", "test")
_IMAGES_PER_TASK = 256  # decoded by a thread at a time: enough that starting the task costs nothing in comparison
_MAX_PENDING_TASKS = 64  # bounds the memory of images that are read and not yet decoded


def read_image_folder(path: Path, progress: bool) -> RawData:
    """The data set in `path`: train/<class>/ and test/<class>/ with images, or <class>/ without test images.

    Hidden files and files with other suffixes are ignored. Raises DataError as `decode_images` and `sort_by_class` do.
    """
    class_folders: set[tuple[str, ...]] = set()
    splits = split_folders(path)
    others = [f.name for f in class_folders_of(path) if splits and f.name not in SPLITS and is_folder_of_classes(f)]
    if others:
        print_warning(printable(f"{path}: only train and test are read, not {', '.join(others)}"))
    names, pixels, resized = decode_images(_read_files(path, class_folders), path, progress)
    names = names if splits else [f"train/{name}" for name in names]
    return sort_by_class(path, names, pixels, resized, class_folders)


def _read_files(path: Path, class_folders: set[tuple[str, ...]]) -> Iterator[tuple[str, bytes]]:
    """Yields (name below path, content) in order of name; adds each (split, class) folder to class_folders."""
    roots = {root.name: root for root in split_folders(path)} or {"train": path}
    for split, root in roots.items():
        for folder in class_folders_of(root):
            class_folders.add((split, folder.name))
            for file in images_in(folder):
                yield file.relative_to(path).as_posix(), checks.read_limited(file, checks.MAX_IMAGE_BYTES)


def split_folders(path: Path) -> list[Path]:
    """The folders train and test, as far as they exist."""
    return [path / split for split in SPLITS if (path / split).is_dir()]


def class_folders_of(path: Path) -> list[Path]:
    """The folders in `path` that are not hidden, in order of name."""
    return sorted(f for f in path.glob("*") if f.is_dir() and not f.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """The image files of a class that are not hidden, in order of name."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def is_folder_of_classes(path: Path) -> bool:
    """Whether a folder in `path` has an image in it."""
    return any(f.suffix.lower() in SUFFIXES for folder in class_folders_of(path) for f in folder.iterdir())


def decode_images(files: Iterator[tuple[str, bytes]], path: Path, progress: bool) -> tuple[list[str], Images, int]:
    """The names of the files, their pixels as RGB, uint8 [N, 32, 32, 3], and how many of them were resized.

    `files` yields (name, encoded image). Threads decode while the next files are still being read. Raises DataError
    for a file that is not a PNG, JPEG, WebP or BMP of 24 to 96 pixels, as `decode_image` does; `path` is the source in
    messages.
    """
    names: list[str] = []
    decoded: list[tuple[Images, int]] = [(np.empty((0, 32, 32, 3), np.uint8), 0)]
    pending: deque[Future[tuple[Images, int]]] = deque()
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar(f"decoding the images of {printable(path.name)}", progress) as advance,
    ):
        while chunk := list(itertools.islice(files, _IMAGES_PER_TASK)):
            names += [name for name, _ in chunk]
            pending.append(pool.submit(_decode_chunk, path, chunk))
            advance(len(chunk))
            if len(pending) > _MAX_PENDING_TASKS:
                decoded.append(pending.popleft().result())
        decoded += [future.result() for future in pending]
    return names, np.concatenate([pixels for pixels, _ in decoded]), sum(resized for _, resized in decoded)


def _decode_chunk(path: Path, files: list[tuple[str, bytes]]) -> tuple[Images, int]:
    pixels, resized = np.empty((len(files), 32, 32, 3), np.uint8), 0
    for row, (name, data) in enumerate(files):
        pixels[row], was_resized = decode_image(data, f"{path}: {name}", FORMATS)
        resized += was_resized
    return pixels, resized


def sort_by_class(
    path: Path, names: list[str], images: Images, resized: int, class_folders: set[tuple[str, ...]]
) -> RawData:
    """The images of each split in order of name, with labels that number the classes in alphabetical order.

    CIFAR-10's official labels are in alphabetical order too, so its images get the same labels from any container.
    names: <split>/<class>/<file> of each image. images: uint8 [N, 32, 32, 3]. class_folders: every (split, class)
    found. Raises DataError for duplicate names, an empty class folder, no training images, and classes that are in
    only one split; `path` is the source named in messages.
    """
    keys = [tuple(name.split("/")) for name in names]
    if len(set(keys)) < len(keys):
        raise DataError(f"{path}: holds {len(keys) - len(set(keys))} files twice; make the archive again")
    used = {key[:2] for key in keys}
    empty = ["/".join(folder) for folder in sorted(class_folders - used)]
    if empty:
        raise DataError(f"{path}: no images in {', '.join(empty)}; add .png or .jpg files or remove the folder")
    train, test = ({name for split, name in used if split == selected} for selected in SPLITS)
    if not train:
        raise DataError(f"{path}: no images in train/<class>/; {SUPPORTED_SOURCES}")
    if train != test and any(split == "test" for split, _ in class_folders | used):
        unpaired = ", ".join(sorted(train ^ test))
        raise DataError(f"{path}: train and test differ in their classes ({unpaired}); each class needs images in both")
    labels = {name: label for label, name in enumerate(sorted(train))}
    arrays = []
    for split in SPLITS:
        rows = sorted((key, row) for row, key in enumerate(keys) if key[0] == split)
        arrays.append((images[[row for _, row in rows]], np.array([labels[key[1]] for key, _ in rows], np.int64)))
    (x_train, y_train), (x_test, y_test) = arrays
    return RawData(tuple(labels), x_train, y_train, x_test, y_test, resized=resized)
