"""Images of any kind -> pixels as the networks read them: RGB, uint8, 32x32. One rule for every door.

`decode_image` takes encoded images: those of data sets and of `fastcifar predict`. `to_rgb_32` takes arrays.

Letters: N images of H x W pixels, C channels (1 or 3).
"""

import io
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcifar.data.checks import Images
from fastcifar.data.messages import DataError

SMALLEST_PX, LARGEST_PX = 24, 64
DECODER = 2
"""Of the pixels that `decode_image` returns; part of the cache key. Raise it with any change to them."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")  # Pillow's kinds of pixels with at most 8 bits in a channel
_LEVEL_OF_16_BITS = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, to the nearest


def decode_image(data: bytes, where: str, formats: tuple[str, ...], max_pixels: int = 0) -> Images:
    """One encoded image as RGB, uint8 [32, 32, 3]: one rule for whatever reads images.

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


def to_rgb_32(images: ArrayLike, what: str = "images") -> NDArray[np.uint8]:
    """uint8 images [N, H, W, C] or [N, H, W] -> [N, 32, 32, 3], resized where they are larger or smaller.

    Resizing is Pillow's box filter, as `fastcifar predict` does it. Raises DataError for another dtype or shape.
    """
    array: NDArray[Any] = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{what}: {array.dtype} {list(array.shape)}; expected uint8 [N, H, W, C] with 1 or 3 channels")
    height, width = array.shape[1:3]
    if not all(SMALLEST_PX <= size <= LARGEST_PX for size in (height, width)):
        raise DataError(f"{what}: {height}x{width} pixels; expected {SMALLEST_PX} to {LARGEST_PX}: resize them")
    if array.shape[3] == 1:
        array = array.repeat(3, axis=3)
    if (height, width) != (32, 32):
        from PIL import Image

        resized = np.empty((len(array), 32, 32, 3), np.uint8)
        for row, image in enumerate(array):
            small = Image.fromarray(np.ascontiguousarray(image)).resize((32, 32), Image.Resampling.BOX)
            resized[row] = np.asarray(small)
        array = resized
    return np.ascontiguousarray(array)
