"""The one rule by which encoded images become pixels, at every door: 16 bits, transparency, EXIF, other sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from PIL import Image
from tiny_sets import encode_image, load_path, make_image_files, make_png, random_images, write_folder, write_tar

from fastcifar.data import pixels as rule
from fastcifar.data import sources
from fastcifar.data.messages import DataError
from fastcifar.data.pixels import decode_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
READ: dict[str, Callable[[Path, bytes], np.ndarray]] = {
    "folder": lambda path, data: load_path(write_folder(path / "a", with_image(data))).x_train[-1],
    "tar": lambda path, data: load_path(write_tar(path / "a.tar", with_image(data))).x_train[-1],
    "any size": lambda path, data: decode_image(data, "x", FORMATS, max_pixels=10_000)[0],
}


def with_image(data: bytes) -> dict[str, bytes]:
    """Files of a data set whose last training image is `data`."""
    return make_image_files() | {"train/dog/x.png": data}


@pytest.fixture(params=READ)
def read(request, tmp_path) -> Callable[[bytes], np.ndarray]:
    """An image -> its pixels, by one of the doors."""
    return lambda data: READ[request.param](tmp_path, data)


def rows_of(pixels: np.ndarray) -> bytes:
    """Pixels [32, 32, ...] as the rows of a PNG, which stores 16 bits with the high byte first."""
    stored = pixels.astype(pixels.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in stored)


def test_grey_of_16_bits_is_divided_by_257(read):
    levels = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    levels[0, :4] = 128, 129, 257 * 77, 65535
    pixels = read(make_png(32, 32, rows_of(levels), depth=16, colour=0))
    expected = np.round(levels / 257).astype(np.uint8)
    assert expected[0, :4].tolist() == [0, 1, 77, 255] and len(np.unique(expected)) > 200
    assert np.array_equal(pixels, expected[..., None].repeat(3, 2))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_other_images_of_16_bits_that_hold_8_are_those_of_8(read, channels):
    """A level v of 8 bits is stored as 257 v, in whatever kind of image."""
    levels = random_images(2).reshape(-1)[: 32 * 32 * channels].reshape(32, 32, channels)
    colour = {2: 4, 3: 2, 4: 6}[channels]
    narrow = make_png(32, 32, rows_of(levels), 8, colour)
    wide = make_png(32, 32, rows_of(levels.astype(np.uint16) * 257), 16, colour)
    assert np.array_equal(read(wide), read(narrow))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(dtype):
    """Pillow has them from TIFF alone, which no door takes; it would clip them to white."""
    data = encode_image(np.full((32, 32), 300, dtype), "TIFF")
    with pytest.raises(DataError, match=r"pixels of kind [IF], whose range is not known"):
        decode_image(data, "x", ("TIFF",))


def test_transparent_pixels_lie_on_white(read):
    pixels = random_images(1)[0]
    alpha = np.arange(1024).reshape(32, 32).astype(np.uint8)
    share = alpha[..., None] / 255
    expected = pixels * share + 255 * (1 - share)
    found = read(encode_image(np.dstack([pixels, alpha])))
    assert np.abs(found - expected).max() <= 1
    assert (found[alpha == 0] == 255).all() and np.array_equal(found[alpha == 255], pixels[alpha == 255])


def test_one_transparent_colour_lies_on_white(read):
    """In a palette, in grey and in colour."""
    image = Image.new("P", (32, 32), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 32, 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    grey = np.full((32, 32), 9, np.uint8)
    grey[:16] = 7
    files = {
        (40, 50, 60): buffer.getvalue(),
        (9, 9, 9): make_png(32, 32, rows_of(grey), 8, 0, transparent=b"\0\7"),
        (9, 9, 8): make_png(32, 32, rows_of(np.dstack([grey, grey, grey - 1])), 8, 2, transparent=b"\0\7\0\7\0\6"),
    }
    for colour, data in files.items():
        pixels = read(data)
        assert (pixels[:16] == 255).all() and (pixels[16:] == colour).all()


@pytest.mark.parametrize(("depth", "colour", "value"), [(16, 0, b"\1\0"), (16, 2, b"\1\0" * 3), (4, 0, b"\0\1")])
def test_a_transparent_colour_that_pillow_would_miss_is_refused(read, depth, colour, value):
    rows = (b"\0" + bytes(32 * depth * (3 if colour else 1) // 8)) * 32
    with pytest.raises(DataError, match="a transparent colour in an image of other than 8 bits"):
        read(make_png(32, 32, rows, depth, colour, value))


TURNS = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2),
         6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.transpose(1, 0, 2), 2), 8: np.rot90}  # fmt: skip
"""EXIF orientation -> what makes the stored image upright, after the standard (CIPA DC-008, 4.6.4)."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["colour", "alpha", "16 bits"])
def test_exif_orientation_turns_the_image_upright(read, orientation, kind):
    pixels = random_images(1)[0]
    stored = {"colour": pixels, "alpha": np.dstack([pixels, np.full((32, 32), 255, np.uint8)]),
              "16 bits": pixels[..., 0].astype(np.uint16) * 257}[kind]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = TURNS[orientation](pixels[..., :1].repeat(3, 2) if kind == "16 bits" else pixels)
    assert np.array_equal(read(encode_image(stored, exif=exif)), expected)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_a_photograph_of_another_size_is_turned_too(file_format):
    """A photograph of 60x40 pixels, its left half red, that is stored lying on its side."""
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:, :20, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode_image(np.rot90(upright), file_format, exif=exif, quality=95)
    assert Image.open(io.BytesIO(data)).size == (60, 40)
    pixels = decode_image(data, "x", FORMATS, max_pixels=2400)[0].astype(int)
    assert (pixels[:, :12, 0] > 200).all() and (pixels[:, 20:, 0] < 50).all() and (pixels[..., 2] < 50).all()


def test_resizing_weighs_colours_by_their_opacity():
    """Else the colour under transparent pixels, which nobody sees, would show at the edges."""
    image = np.zeros((64, 64, 4), np.uint8)
    image[::2] = 0, 0, 255, 255
    image[1::2] = 0, 255, 0, 0  # green, but transparent
    pixels = decode_image(encode_image(image), "x", FORMATS, max_pixels=64 * 64)[0]
    assert np.abs(pixels[1:-1].astype(int) - [127, 127, 255]).max() <= 1


def test_a_size_is_allowed_up_to_the_limit():
    data = encode_image(np.zeros((40, 50, 3), np.uint8))
    assert decode_image(data, "x", FORMATS, max_pixels=2000)[0].shape == (32, 32, 3)
    with pytest.raises(DataError, match=r"x: cannot be read as an image \(50x40 pixels; expected at most 1,999\)"):
        decode_image(data, "x", FORMATS, max_pixels=1999)


def test_a_set_that_was_decoded_by_another_rule_is_decoded_again(tmp_path, monkeypatch):
    for path in (write_folder(tmp_path / "a", make_image_files()), write_tar(tmp_path / "a.tar", make_image_files())):
        now = sources.fingerprint(path)
        with monkeypatch.context() as patched:
            patched.setattr(sources, "DECODER", rule.DECODER - 1)
            assert sources.fingerprint(path) != now
        assert sources.fingerprint(path) == now
