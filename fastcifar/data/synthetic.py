"""Draws the built-in synthetic data set: ten shapes on busy backgrounds, in seconds, the same bytes on every machine.

It replaces CIFAR-10 where that cannot be downloaded, so that the whole program can be tried without a network. The
class is the shape alone: colour, position, size, rotation and background are independent of it, so ridge regression on
the pixels reaches 15%. Faint and half-covered shapes, rings with a closed hole and crosses that are nearly squares
cannot be told apart for certain: a small network (61,000 parameters) reached 88% after 6 epochs on 20,000 images.

To give the same bytes everywhere, random numbers come from the raw bits of PCG64 (a fixed stream, unlike the methods
of NumPy's Generator, which may change) and pixels only from + - * / sqrt min max on float32, for which IEEE 754 fixes
the rounding. The exception, the cosine table of rotations, is rounded to 2^-16. Images are drawn in chunks seeded by
(seed, split, chunk), so the first n images of a larger set are those of a smaller one.

Letters: n images of a chunk, H = W = 32 pixels.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcifar.data.checks import Images, Labels

CLASSES = ("bars", "checker", "crescent", "cross", "disc", "frame", "ring", "square", "star", "triangle")
N_TRAIN, N_TEST = 50_000, 10_000
VERSION = 1
"""Of the bytes drawn from a seed; part of the cache key. Raise it with any change to them."""
MEAN = (0.38446237323835786, 0.38392070182291665, 0.3846072188265931)
STD = (0.16785352047272453, 0.16815502670674395, 0.1681389266144389)
"""Of the 50,000 training images of seed 0, for pixels in [0, 1]."""

_CHUNK = 100  # images drawn at once: enough for NumPy to be fast, few enough for the cache of the CPU
_SIZE = 32  # H and W
_ANGLES = 256  # entries of the table of rotations
_COS = np.array([round(math.cos(2 * math.pi * k / _ANGLES) * 65536) / 65536 for k in range(_ANGLES)], np.float32)
_SIN = np.roll(_COS, _ANGLES // 4)
_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:_SIZE, 0:_SIZE])  # [H, W] each

Floats = NDArray[np.floating[Any]]  # always float32; NumPy's annotations do not say so of every expression
Bits = np.random.PCG64


def make(
    n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 0
) -> tuple[Images, Labels, Images, Labels, tuple[str, ...]]:
    """Returns x_train uint8 [n_train, 32, 32, 3], y_train int64 [n_train], x_test, y_test and the class names.

    Every ten images in a row hold each class once. Raises ValueError for sizes outside 1..50,000 and 1..10,000.
    """
    if not (1 <= n_train <= N_TRAIN and 1 <= n_test <= N_TEST):
        raise ValueError(
            f"synthetic set of {n_train} + {n_test} images; choose 1 to {N_TRAIN} for training and 1 to {N_TEST} for "
            "testing"
        )
    return (*_draw_split(n_train, seed, 0), *_draw_split(n_test, seed, 1), CLASSES)


def _draw_split(n: int, seed: int, split: int) -> tuple[Images, Labels]:
    images, labels = np.empty((n, _SIZE, _SIZE, 3), np.uint8), np.empty(n, np.int64)
    for chunk, start in enumerate(range(0, n, _CHUNK)):
        chunk_images, chunk_labels = _draw_chunk(np.random.PCG64([seed, split, chunk]))
        images[start : start + _CHUNK] = chunk_images[: n - start]
        labels[start : start + _CHUNK] = chunk_labels[: n - start]
    return images, labels


def _draw_chunk(bits: Bits) -> tuple[Images, Labels]:
    """Images uint8 [n, H, W, 3] and labels int64 [n] of one chunk. The order of the draws fixes the bytes."""
    labels = np.argsort(_uniform(bits, _CHUNK // 10, 10), axis=1, kind="stable").reshape(-1)
    background_colour = np.float32(0.55) * _uniform(bits, _CHUNK, 3, 1, 1)
    image = _draw_clouds(bits, background_colour, amplitude=0.3)  # [n, 3, H, W] while painting: planes are faster
    # A stroke behind the shape adds an edge that is independent of the class
    _paint(image, _draw_stroke(bits, width=1.0), _uniform(bits, _CHUNK, 3, 1, 1))
    shape_colour = np.float32(0.4) + np.float32(0.6) * _uniform(bits, _CHUNK, 3, 1, 1)  # brighter than most backgrounds
    u, v, radius = _draw_pose(bits, max_offset=5.0, min_radius=5.0, max_radius=11.0, max_turn=0.1)
    variation = _uniform(bits, _CHUNK, 1, 1)  # thickness or opening; each shape uses it in its own way
    distance = np.empty((_CHUNK, _SIZE, _SIZE), np.float32)
    for label, name in enumerate(CLASSES):
        rows = labels == label
        distance[rows] = _SHAPES[name](u[rows], v[rows], variation[rows])
    opacity = np.float32(0.4) + np.float32(0.6) * _uniform(bits, _CHUNK, 1, 1)  # some shapes are see-through
    coverage = np.clip(np.float32(0.5) - distance * radius, 0, 1) * opacity
    _paint(image, coverage, _draw_clouds(bits, shape_colour, amplitude=0.3))
    for _ in range(2):  # strokes in front hide a part of the shape
        _paint(image, _draw_stroke(bits, width=1.5), _uniform(bits, _CHUNK, 3, 1, 1))
    two_bytes = bits.random_raw(image.size // 4).astype("<u8").view(np.uint8).reshape(2, *image.shape)
    sigma = 3 + 18 * _uniform(bits, _CHUNK, 1, 1, 1)  # grey levels; a sum of two bytes has a deviation of 104.5
    noise = (two_bytes[0].astype(np.float32) + two_bytes[1] - np.float32(255)) * (sigma / np.float32(104.5))
    pixels = np.clip(image * np.float32(255) + noise + np.float32(0.5), 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1), labels


def _uniform(bits: Bits, *shape: int) -> NDArray[np.float32]:
    """float32 in [0, 1), from 24 random bits each."""
    raw = np.asarray(bits.random_raw(math.prod(shape)), np.uint64).reshape(shape)
    return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _draw_clouds(bits: Bits, colour: Floats, amplitude: float) -> Floats:
    """Smooth colour [n, 3, H, W] in [0, 1] around `colour` [n, 3, 1, 1]: a 4x4 grid, interpolated bilinearly."""
    grid = colour + np.float32(amplitude) * (_uniform(bits, _CHUNK, 3, 4, 4) - colour)
    position = np.arange(_SIZE, dtype=np.float32) * np.float32(3 / 32)
    low = position.astype(np.int64)
    weight = position - low.astype(np.float32)
    rows = grid[:, :, low] + weight[:, None] * (grid[:, :, low + 1] - grid[:, :, low])  # [n, 3, H, 4]
    steps = rows[..., 1:] - rows[..., :-1]
    return rows[..., low] + weight * steps[..., low]


def _draw_pose(
    bits: Bits, max_offset: float, min_radius: float, max_radius: float, max_turn: float
) -> tuple[Floats, Floats, Floats]:
    """Coordinates u, v [n, H, W] of the pixels in the system of a randomly placed shape, in units of its radius.

    Also returns the radius in pixels, [n, 1, 1]. max_offset: of the centre from the middle of the image, in pixels.
    max_turn: to either side, in full turns.
    """
    draws = _uniform(bits, 4, _CHUNK, 1, 1)
    x, y = ((_SIZE - 1) / 2 + np.float32(max_offset) * (2 * draws[:2] - 1)).astype(np.float32)
    radius = np.float32(min_radius) + np.float32(max_radius - min_radius) * draws[2]
    angle = ((2 * draws[3] - 1) * np.float32(max_turn * _ANGLES)).astype(np.int64)  # to either side, as mirrors are
    cos, sin = _COS[angle] / radius, _SIN[angle] / radius
    dx, dy = _X - x, _Y - y
    return cos * dx + sin * dy, cos * dy - sin * dx, radius


def _draw_stroke(bits: Bits, width: float) -> Floats:
    """Coverage [n, H, W] of a straight stroke, anywhere in the image, 4 to 12 pixels to each side of its middle."""
    u, v, length = _draw_pose(bits, max_offset=15.0, min_radius=4.0, max_radius=12.0, max_turn=0.5)
    half_width = np.float32(width) * (np.float32(0.4) + _uniform(bits, _CHUNK, 1, 1))
    return np.clip(0.5 - np.maximum(abs(u) * length - length, abs(v) * length - half_width), 0, 1)


def _paint(image: Floats, coverage: Floats, colour: Floats) -> None:
    """Blends `colour` into image [n, 3, H, W], in place, by coverage [n, H, W] in [0, 1]."""
    step = colour - image
    step *= coverage[:, None]
    image += step


# The shapes. Each function returns the distance of the pixels to the edge of the shape, negative inside, in units of
# its radius. u, v [n, H, W]: coordinates in these units. t [n, 1, 1] in [0, 1): the variation of the shape.


def _max(a: Floats, b: Floats) -> Floats:
    """np.maximum, whose annotation lacks the type of its result. Of two distances: the intersection of two shapes."""
    larger: Floats = np.maximum(a, b)
    return larger


def _min(a: Floats, b: Floats) -> Floats:
    """np.minimum, likewise. Of two distances: the union of two shapes."""
    smaller: Floats = np.minimum(a, b)
    return smaller


def _norm(u: Floats, v: Floats, squeeze: Floats | int = 1) -> Floats:
    return np.sqrt(u * u + v * v * squeeze)


def _triangle(u: Floats, v: Floats, t: Floats) -> Floats:
    return _max(0.866 * abs(u) + 0.5 * v, -v * (1 - 0.2 * t)) - 0.55


def _quarters(u: Floats, v: Floats) -> Floats:
    """Two of the four quarters of the plane: where u and v have the same sign."""
    return _min(_max(u, v), _max(-u, -v))


_SHAPES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "bars": lambda u, v, t: _max(abs(u) - 0.9, abs(abs(v) - 0.58) - (0.16 + 0.42 * t)),
    "checker": lambda u, v, t: _max(_max(abs(u), abs(v)) - 0.9, _quarters(u, v) + 0.15 * (t - 0.5)),
    "crescent": lambda u, v, t: _max(_norm(u, v) - 0.95, 0.75 - _norm(u - 1.35 + 0.9 * t, v)),
    "cross": lambda u, v, t: _max(_max(abs(u), abs(v)) - 0.95, _min(abs(u), abs(v)) - (0.15 + 0.65 * t)),
    "disc": lambda u, v, t: _norm(u, v, 1 + 0.3 * t) - 0.92,  # at most a slight ellipse
    "frame": lambda u, v, t: _max(_max(abs(u), abs(v)) - 0.85, 0.65 * t - _max(abs(u), abs(v))),
    "ring": lambda u, v, t: _max(_norm(u, v) - 0.95, 0.65 * t - _norm(u, v)),
    "square": lambda u, v, t: _max(abs(u), abs(v) * (1 + 0.25 * t)) - 0.82,
    "star": lambda u, v, t: _min(_triangle(u, v, 0 * t), _triangle(u, -v, 0 * t)) + 0.08 * t,
    "triangle": _triangle,
}
