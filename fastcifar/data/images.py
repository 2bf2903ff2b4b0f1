"""Reads data sets of encoded images: finds them in folders, decodes them, and sorts them by class.

An image belongs to a split and a class by its name, `train/<class>/<file>` or `test/<class>/<file>`. Tars of images
are opened by `archives` and decoded here; `decode_image` decodes the images of `fastcifar predict`, too.

Letters: N images of H = W = 32 pixels.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fastcifar.data import limits
from fastcifar.data.errors import SUPPORTED_SOURCES, DataError, printable
from fastcifar.data.progress import progress_bar
from fastcifar.data.raw import Images, RawData

SPLITS = ("train", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
DECODER = 2
"""Of the pixels that `decode_image` returns; part of the cache key. Raise it with any change to them."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")  # Pillow's kinds of pixels with at most 8 bits in a channel
_LEVEL_OF_16_BITS = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, to the nearest
_IMAGES_PER_TASK = 256  # decoded by a thread at a time: enough that starting the task costs nothing in comparison
_MAX_PENDING_TASKS = 64  # bounds the memory of images that are read and not yet decoded


def read_image_folder(path: Path, progress: bool) -> RawData:
    """Returns the data set in `path`: train/<class>/*.png|jpg|jpeg and test/<class>/... of 32x32 pixels.

    Hidden files and files with other suffixes are ignored. Raises DataError as `decode_images` and `sort_by_class` do.
    """
    class_folders: set[tuple[str, ...]] = set()
    names, images = decode_images(_read_files(path, class_folders), path, progress)
    return sort_by_class(path, names, images, class_folders)


def _read_files(path: Path, class_folders: set[tuple[str, ...]]) -> Iterator[tuple[str, bytes]]:
    """Yields (train/<class>/<file>, content) in order of name; adds each (split, class) folder to class_folders."""
    for split in SPLITS:
        for folder in sorted(f for f in (path / split).glob("*") if f.is_dir() and not f.name.startswith(".")):
            class_folders.add((split, folder.name))
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
                    yield f"{split}/{folder.name}/{file.name}", limits.read_limited(file, limits.MAX_IMAGE_BYTES)


def decode_images(files: Iterator[tuple[str, bytes]], path: Path, progress: bool) -> tuple[list[str], Images]:
    """Returns the names of the files and their pixels as RGB, uint8 [N, 32, 32, 3], in the order of `files`.

    `files` yields (name, encoded image). Threads decode while the next files are still being read. Raises DataError
    for a file that is not a PNG or JPEG of 32x32 pixels, as `decode_image` does; `path` is the source in messages.
    """
    names: list[str] = []
    decoded: list[Images] = [np.empty((0, 32, 32, 3), np.uint8)]
    pending: deque[Future[Images]] = deque()
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
    return names, np.concatenate(decoded)


def _decode_chunk(path: Path, files: list[tuple[str, bytes]]) -> Images:
    pixels = np.empty((len(files), 32, 32, 3), np.uint8)
    for row, (name, data) in enumerate(files):
        pixels[row] = decode_image(data, f"{path}: {name}", ("PNG", "JPEG"))
    return pixels


def decode_image(data: bytes, where: str, formats: tuple[str, ...], max_pixels: int = 0) -> Images:
    """Returns one encoded image as RGB, uint8 [32, 32, 3]: one rule for whatever reads images.

    Grey of 16 bits is divided by 257. Transparent pixels lie on white. EXIF orientation turns the image upright. Of an
    animation the first image counts. An image of another size than 32x32 is resized (Pillow's box filter) where it has
    at most max_pixels.

    formats: of Pillow. where: what the image is called in messages. Raises DataError for anything else, for pixels
    whose range is not known, and for a size that is not allowed: that is read from the header, before decoding.
    """
    from PIL import Image, UnidentifiedImageError  # imported here, so that a run from the cache does not wait for it

    try:
        image = Image.open(io.BytesIO(data), formats=formats)  # reads only the header
        width, height = image.size
        if image.size != (32, 32) and width * height > max_pixels:
            expected = f"at most {max_pixels:,}" if max_pixels else "32x32"
            raise ValueError(f"{width}x{height} pixels; expected {expected}")
        return _to_rgb_32(image)
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: cannot be read as an image (no {' or '.join(formats)}); replace it") from error
    except Exception as error:  # Pillow raises almost any exception on a damaged file
        raise DataError(f"{where}: cannot be read as an image ({error}); replace it") from error


def _to_rgb_32(image: Any) -> Images:
    """The pixels of Pillow's image as `decode_image` returns them. ValueError for pixels whose range is not known."""
    from PIL import Image, ImageOps

    depth = image.tile[0][3] if image.tile else image.mode  # Pillow's name of how the file stores a pixel
    if "transparency" in image.info and image.mode in ("L", "RGB", "I;16") and depth != image.mode:
        raise ValueError("a transparent colour in an image of other than 8 bits")  # Pillow would compare unscaled
    if image.mode == "I;16":
        levels = Image.fromarray(_LEVEL_OF_16_BITS[np.asarray(image)])
        levels.info, image = image.info, levels  # `info` holds the EXIF
    elif image.mode not in _MODES:
        raise ValueError(f"pixels of kind {image.mode}, whose range is not known")
    kind = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != kind:  # else Pillow makes a copy
        image = image.convert(kind)
    if image.size != (32, 32):  # first, so that what follows costs little memory
        image = image.resize((32, 32), Image.Resampling.BOX)
    ImageOps.exif_transpose(image, in_place=True)
    if kind == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image)


def sort_by_class(path: Path, names: list[str], images: Images, class_folders: set[tuple[str, ...]]) -> RawData:
    """Returns the images of each split in order of name, with labels that number the classes in alphabetical order.

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
    if train != test:
        unpaired = ", ".join(sorted(train ^ test))
        raise DataError(f"{path}: train and test differ in their classes ({unpaired}); each class needs images in both")
    labels = {name: label for label, name in enumerate(sorted(train))}
    arrays = []
    for split in SPLITS:
        rows = sorted((key, row) for row, key in enumerate(keys) if key[0] == split)
        arrays.append((images[[row for _, row in rows]], np.array([labels[key[1]] for key, _ in rows], np.int64)))
    (x_train, y_train), (x_test, y_test) = arrays
    return RawData(tuple(labels), x_train, y_train, x_test, y_test)
