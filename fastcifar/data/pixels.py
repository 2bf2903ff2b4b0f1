"""Images of any kind -> pixels as the networks read them: RGB, uint8, 32x32. One rule for every door.

`decode_image` takes encoded images: those of data sets and of `fastcifar predict`. `to_rgb` and `to_32` take arrays.
Equal pixels give equal results at every door.

Letters: N images of H x W pixels, C channels (1 or 3).
"""

import io
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.messages import DataError

Images = NDArray[np.uint8]  # [N, H, W, 3]
SMALLEST_PX, LARGEST_PX = 24, 96
"""Of the height and the width of an image in a data set. The network trains on 32x32."""
DECODER = 4
"""Of the pixels that this module makes, and of the formats; part of the cache key. Raise it with any change to them."""
FORMATS, SUFFIXES = ("PNG", "JPEG", "WEBP", "BMP"), (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Of image files: names in Pillow, and what a file in a folder must end with to be taken for an image."""
RESIZE = "BILINEAR"
"""Pillow's name of the filter that makes 32x32 pixels: Image.Resampling.<name>. Exported files tell it."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")  # Pillow's kinds of pixels with at most 8 bits in a channel
_LEVEL_OF_16_BITS = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, to the nearest


def resize_to_32(image: Any) -> Any:
    """Pillow's image in 32x32 pixels: by RESIZE, over all pixels that fall into a new one, so without aliasing."""
    from PIL import Image

    return image if image.size == (32, 32) else image.resize((32, 32), Image.Resampling[RESIZE])


def check_size(width: int, height: int) -> None:
    """ValueError unless both are SMALLEST_PX to LARGEST_PX."""
    if not SMALLEST_PX <= min(width, height) <= max(width, height) <= LARGEST_PX:
        raise ValueError(f"{width}x{height} pixels; expected {SMALLEST_PX} to {LARGEST_PX} in width and height")


def decode_image(data: bytes, where: str, formats: tuple[str, ...], max_pixels: int = 0) -> tuple[Images, bool]:
    """One encoded image as RGB, uint8 [32, 32, 3], and whether it was resized for that.

    Grey of 16 bits is divided by 257. Transparent pixels lie on white. EXIF orientation turns the image upright. Of an
    animation the first image counts.

    formats: of Pillow. where: what the image is called in messages. max_pixels: of a photograph; 0 for an image of a
    data set, whose size is as `check_size` wants it. Raises DataError for anything else, for pixels whose range is not
    known, and for a size that is not allowed: that is read from the header, before decoding.
    """
    from PIL import Image, UnidentifiedImageError  # imported here, so that a run from the cache does not wait for it

    try:
        image = Image.open(io.BytesIO(data), formats=formats)  # reads only the header
        width, height = image.size
        if not max_pixels:
            check_size(width, height)
        elif width * height > max_pixels:
            raise ValueError(f"{width}x{height} pixels; expected at most {max_pixels:,}")
        return _to_rgb_32(image), (width, height) != (32, 32)
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
    image = resize_to_32(image)  # first, so that what follows costs little memory
    ImageOps.exif_transpose(image, in_place=True)
    if kind == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image)


def to_rgb(images: ArrayLike, what: str = "images") -> Images:
    """Images [N, H, W, C], [N, C, H, W] or [N, H, W], uint8 or floats in [0, 1] -> uint8 [N, H, W, 3], C-contiguous.

    Raises DataError for another dtype, range or shape.
    """
    array: NDArray[Any] = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if not (array.dtype == np.uint8 or array.dtype.kind == "f") or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{what}: {array.dtype} {list(np.shape(images))}; expected uint8, or floats in [0, 1], "
                        "[N, H, W, C] or [N, C, H, W] with 1 or 3 channels")  # fmt: skip
    try:
        check_size(array.shape[2], array.shape[1])
    except ValueError as error:
        raise DataError(f"{what}: {error}; resize them") from error
    if array.dtype.kind == "f" and array.size:
        lowest, largest = float(array.min()), float(array.max())
        if not 0 <= lowest <= largest <= 1:  # nor where one is NaN
            raise DataError(f"{what}: {array.dtype} from {lowest:.3g} to {largest:.3g}; expected uint8, or floats in "
                            "[0, 1]: undo a normalisation, or give levels up to 255 as uint8")  # fmt: skip
    if array.dtype.kind == "f":
        array = (array * 255).round().astype(np.uint8)
    return np.ascontiguousarray(array.repeat(3, axis=3) if array.shape[3] == 1 else array)


def to_32(images: Images) -> Images:
    """[N, H, W, 3] -> [N, 32, 32, 3]; the images themselves where they have that size."""
    if images.shape[1:3] == (32, 32):
        return images
    from PIL import Image

    resized = np.empty((len(images), 32, 32, 3), np.uint8)
    for row, image in enumerate(images):
        resized[row] = np.asarray(resize_to_32(Image.fromarray(image)))
    return resized


def to_rgb_32(images: ArrayLike, what: str = "images") -> Images:
    """Images as `to_rgb` takes them -> uint8 [N, 32, 32, 3], resized where they are larger or smaller."""
    return to_32(to_rgb(images, what))
