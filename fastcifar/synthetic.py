"""The built-in offline set: ten shapes on busy backgrounds, drawn in seconds, the same bytes on every machine.

A stand-in where CIFAR-10 cannot be had, so that the whole program can be tried without a network. The class is the
shape alone: colour, place, size, rotation and background tell nothing about it, so ridge regression on the pixels
reaches 15%. Faint and half-covered shapes, rings with a closed hole and crosses that are nearly squares cannot be told
apart for certain: a small network (61,000 parameters) had 88% after 6 epochs on 20,000 images.

Same bytes everywhere: draws come from PCG64's raw bits (a fixed stream, unlike the Generator's methods, which NumPy
may change) and pixels only from + - * / sqrt min max on float32, which IEEE 754 rounds in one way. The exception,
the sine table of rotations, is rounded to 2^-16. Images are drawn in chunks keyed by (seed, split, chunk), so the
first n images of a larger set are those of a smaller one.

Letters: n images of a chunk, H = W = 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

CLASSES = ("bars", "checker", "crescent", "cross", "disc", "frame", "ring", "square", "star", "triangle")
N_TRAIN, N_TEST = 50_000, 10_000
VERSION = 1  # of the bytes drawn from a seed: raise it with any change to them
# Of the 50,000 training images of seed 0, in [0, 1] units
MEAN = (0.38446237323835786, 0.38392070182291665, 0.3846072188265931)
STD = (0.16785352047272453, 0.16815502670674395, 0.1681389266144389)
_CHUNK = 100  # images drawn at once: big enough for NumPy, small enough for the CPU's cache
_SIDE = 32
_ANGLES = 256
_COS = np.array([round(math.cos(2 * math.pi * k / _ANGLES) * 65536) / 65536 for k in range(_ANGLES)], np.float32)
_SIN = np.roll(_COS, _ANGLES // 4)
_Y, _X = (axis.astype(np.float32) for axis in np.mgrid[0:_SIDE, 0:_SIDE])  # [H, W] each

Array = np.ndarray


def make(
    n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 0
) -> tuple[Array, Array, Array, Array, tuple[str, ...]]:
    """x_train uint8 [n_train, 32, 32, 3], y_train int64 [n_train], the same two for testing, and the class names.

    Every ten images in a row hold each class once. Raises ValueError for sizes outside 1..50,000 and 1..10,000.
    """
    if not (1 <= n_train <= N_TRAIN and 1 <= n_test <= N_TEST):
        raise ValueError(f"synthetic set of {n_train} + {n_test} images: at most {N_TRAIN} + {N_TEST}, at least 1 + 1")
    return (*_split(n_train, seed, 0), *_split(n_test, seed, 1), CLASSES)


def _split(n: int, seed: int, split: int) -> tuple[Array, Array]:
    images, labels = np.empty((n, _SIDE, _SIDE, 3), np.uint8), np.empty(n, np.int64)
    for index, start in enumerate(range(0, n, _CHUNK)):
        some_images, some_labels = _draw(np.random.PCG64([seed, split, index]))
        images[start : start + _CHUNK] = some_images[: n - start]
        labels[start : start + _CHUNK] = some_labels[: n - start]
    return images, labels


def _draw(bits: np.random.PCG64) -> tuple[Array, Array]:
    """One chunk: images uint8 [n, H, W, 3], labels int64 [n]."""
    labels = np.argsort(_uniform(bits, _CHUNK // 10, 10), axis=1, kind="stable").reshape(-1)
    colour = np.float32(0.55) * _uniform(bits, _CHUNK, 3, 1, 1)
    image = _clouds(bits, colour, amplitude=0.3)  # [n, 3, H, W] until it is whole: planes are faster to paint
    _paint(image, _stroke(bits, width=1.0), _uniform(bits, _CHUNK, 3, 1, 1))  # an edge that tells nothing
    other = np.float32(0.4) + np.float32(0.6) * _uniform(bits, _CHUNK, 3, 1, 1)  # brighter, as a rule
    u, v, radius = _pose(bits, centre=5.0, smallest=5.0, largest=11.0, turn=0.1)
    inner = _uniform(bits, _CHUNK, 1, 1)  # how thick, how open: each shape reads it in its own way
    edge = np.empty((_CHUNK, _SIDE, _SIDE), np.float32)
    for label, name in enumerate(CLASSES):
        mine = labels == label
        edge[mine] = _SHAPES[name](u[mine], v[mine], inner[mine])
    strength = np.float32(0.4) + np.float32(0.6) * _uniform(bits, _CHUNK, 1, 1)  # some shapes are see-through
    _paint(image, np.clip(np.float32(0.5) - edge * radius, 0, 1) * strength, _clouds(bits, other, amplitude=0.3))
    for _ in range(2):  # strokes over the shape hide a part of it
        _paint(image, _stroke(bits, width=1.5), _uniform(bits, _CHUNK, 3, 1, 1))
    grain = bits.random_raw(image.size // 4).astype("<u8").view(np.uint8).reshape(2, *image.shape)
    sigma = 3 + 18 * _uniform(bits, _CHUNK, 1, 1, 1)  # grey levels; a sum of two bytes has a deviation of 104.5
    noise = (grain[0].astype(np.float32) + grain[1] - np.float32(255)) * (sigma / np.float32(104.5))
    pixels = np.clip(image * np.float32(255) + noise + np.float32(0.5), 0, 255).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1), labels


def _uniform(bits: np.random.PCG64, *shape: int) -> Array:
    """float32 in [0, 1), 24 random bits each."""
    raw = np.asarray(bits.random_raw(math.prod(shape)), np.uint64).reshape(shape)
    return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _clouds(bits: np.random.PCG64, colour: Array, amplitude: float) -> Array:
    """Smooth colour [n, 3, H, W] in [0, 1] around `colour` [n, 3, 1, 1]: a 4x4 grid stretched over the image."""
    grid = colour + np.float32(amplitude) * (_uniform(bits, _CHUNK, 3, 4, 4) - colour)
    at = np.arange(_SIDE, dtype=np.float32) * np.float32(3 / 32)
    low = at.astype(np.int64)
    weight = at - low.astype(np.float32)
    rows = grid[:, :, low] + weight[:, None] * (grid[:, :, low + 1] - grid[:, :, low])  # [n, 3, H, 4]
    steps = rows[..., 1:] - rows[..., :-1]
    return rows[..., low] + weight * steps[..., low]


def _pose(
    bits: np.random.PCG64, centre: float, smallest: float, largest: float, turn: float
) -> tuple[Array, Array, Array]:
    """Pixel coordinates u, v [n, H, W] in units of a shape's radius, and that radius in pixels [n, 1, 1]."""
    place = _uniform(bits, 4, _CHUNK, 1, 1)
    x, y = ((_SIDE - 1) / 2 + np.float32(centre) * (2 * place[:2] - 1)).astype(np.float32)
    radius = np.float32(smallest) + np.float32(largest - smallest) * place[2]
    angle = ((2 * place[3] - 1) * np.float32(turn * _ANGLES)).astype(np.int64)  # to either side, as mirrors are
    cos, sin = _COS[angle] / radius, _SIN[angle] / radius
    dx, dy = _X - x, _Y - y
    return cos * dx + sin * dy, cos * dy - sin * dx, radius


def _stroke(bits: np.random.PCG64, width: float) -> Array:
    """Coverage [n, H, W] of a straight stroke, anywhere, 4 to 12 pixels to each side of its middle."""
    u, v, length = _pose(bits, centre=15.0, smallest=4.0, largest=12.0, turn=0.5)
    half = np.float32(width) * (np.float32(0.4) + _uniform(bits, _CHUNK, 1, 1))
    return np.clip(0.5 - np.maximum(abs(u) * length - length, abs(v) * length - half), 0, 1)


def _paint(image: Array, cover: Array, colour: Array) -> None:
    step = colour - image
    step *= cover[:, None]
    image += step


# Distance to the edge, negative inside, in units of the radius. u, v [n, H, W]; t [n, 1, 1] in [0, 1).


def _disc(u: Array, v: Array, t: Array) -> Array:
    squeeze = 1 + np.float32(0.3) * t  # up to a slight ellipse
    return np.sqrt(u * u + v * v * squeeze) - np.float32(0.92)


def _length(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _ring(u: Array, v: Array, t: Array) -> Array:
    reach = _length(u, v)
    return np.maximum(reach - np.float32(0.95), np.float32(0.65) * t - reach)


def _square(u: Array, v: Array, t: Array) -> Array:
    return np.maximum(abs(u), abs(v) * (1 + np.float32(0.25) * t)) - np.float32(0.82)


def _frame(u: Array, v: Array, t: Array) -> Array:
    reach = np.maximum(abs(u), abs(v))
    return np.maximum(reach - np.float32(0.85), np.float32(0.65) * t - reach)


def _triangle(u: Array, v: Array, t: Array) -> Array:
    side = np.float32(0.866) * abs(u) + np.float32(0.5) * v
    return np.maximum(side, -v * (1 - np.float32(0.2) * t)) - np.float32(0.55)


def _star(u: Array, v: Array, t: Array) -> Array:
    return np.minimum(_triangle(u, v, 0 * t), _triangle(u, -v, 0 * t)) + np.float32(0.08) * t


def _cross(u: Array, v: Array, t: Array) -> Array:
    arm = np.float32(0.15) + np.float32(0.65) * t
    u, v = abs(u), abs(v)
    return np.maximum(np.maximum(u, v) - np.float32(0.95), np.minimum(u, v) - arm)


def _crescent(u: Array, v: Array, t: Array) -> Array:
    bite = _length(u - np.float32(1.35) + np.float32(0.9) * t, v)
    return np.maximum(_length(u, v) - np.float32(0.95), np.float32(0.75) - bite)


def _bars(u: Array, v: Array, t: Array) -> Array:
    half = np.float32(0.16) + np.float32(0.42) * t
    return np.maximum(abs(u) - np.float32(0.9), abs(abs(v) - np.float32(0.58)) - half)


def _checker(u: Array, v: Array, t: Array) -> Array:
    gap = np.float32(0.15) * (t - np.float32(0.5))
    same_sign = np.minimum(np.maximum(u, v), np.maximum(-u, -v)) + gap  # two of the four quarters
    return np.maximum(np.maximum(abs(u), abs(v)) - np.float32(0.9), same_sign)


_SHAPES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "bars": _bars,
    "checker": _checker,
    "crescent": _crescent,
    "cross": _cross,
    "disc": _disc,
    "frame": _frame,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
