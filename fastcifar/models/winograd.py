"""A 3x3 convolution by fewer products (Winograd), for fp32 training on a CPU.

Tiles of m x m outputs become (m + 2)^2 numbers each, for which one product per pair of channels is enough: a direct
convolution takes 9 m^2 (Lavin & Gray 2015, arXiv:1509.09308). The points of the transforms are those with the least
error in fp32 of some hundred that were tried, as Barabasz et al. 2018 (arXiv:1803.10986) do it.

Shapes: B images, C channels in, N out, H W pixels; m outputs and n = m + 2 inputs of a tile along each side; t tiles
along the height of a map, u along its width. All activations are channels_last.
"""

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

POINTS: dict[int, tuple[float, ...]] = {
    2: (0, 1, -1), 3: (0, 1, -1, 0.5), 4: (0, 1, -1, 0.5, -0.5), 5: (0, 1, -1, 0.5, -0.5, -3),
    6: (0, 1, -1, 0.5, -0.5, 2, -2), 7: (0, 1, -1, 0.5, -0.5, 1.5, -1.5, -3),
}  # fmt: skip
"""Of the sizes m of a tile, besides infinity. The outputs differ from exact ones by 3e-7 (m = 2) to 1.4e-5 (m = 7) of
their norm; those of oneDNN by 4e-7 to 8e-7."""
LARGEST_SHARE = 0.85
"""What `share_of_seconds` must be below; the formula is off by up to a fifth."""
FULL_STEP = 0.5
"""At least so much of the seconds that its arithmetic takes at the rate of a large product lasts a step of resnet9 at
full size: 0.55 on the core where it was measured."""
IMAGES = 100
"""So many are transformed at a time. With all 500 of a batch a step takes no less time and 1.5 times the memory."""


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3): y = outputs (filters w * inputs x) for x [n], w [3], y [m]."""

    outputs: Tensor
    """[m, n] f32."""
    filters: Tensor
    """[n, 3] f32."""
    inputs: Tensor
    """[n, n] f32."""


@cache
def transforms(m: int) -> Transforms:
    """Made by the method of Toom and Cook; rows of `filters` and `inputs` are scaled to equal norms."""
    points = POINTS[m]
    n = m + 2
    outputs, filters, inputs = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        outputs[:, i] = [point**j for j in range(m)]
        filters[i] = np.array([1, point, point**2]) / np.prod([point - other for other in others])
        inputs[i, : n - 1] = np.poly(others)[::-1]  # coefficients of the polynomial that is zero there
    outputs[-1, -1] = filters[-1, -1] = 1
    inputs[-1] = np.poly(points)[::-1]
    scale = np.sqrt(np.linalg.norm(inputs, axis=1) / np.linalg.norm(filters, axis=1))[:, None]
    return Transforms(*(torch.tensor(a, dtype=torch.float32) for a in (outputs, filters * scale, inputs / scale)))


def tile_of(height: int, width: int) -> int:
    """The size of a tile with the fewest products for a map of so many outputs."""
    return min(POINTS, key=lambda m: products(m, height, width))


def products(m: int, height: int, width: int) -> int:
    """For each pair of channels, of a map of so many outputs in tiles of m x m."""
    return (m + 2) ** 2 * -(-height // m) * -(-width // m)


def share_of_seconds(c_in: int, c_out: int, height: int, width: int) -> float:
    """Seconds of forward and backward pass, those of oneDNN being 1: the share of its products, twice for the rate and
    more for the transforms, the more so the fewer channels share them. Fitted on AVX2 (docs/log)."""
    share = products(tile_of(height, width), height, width) / (9 * height * width)
    return share * (2 + 35 / c_in + 35 / c_out)


def is_used_for(dtype: torch.dtype) -> bool:
    """Whether this CPU trains any convolution so in this dtype. With AVX-512 or bf16 nothing was measured."""
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2"


def pays(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether training such a convolution on this CPU is faster so."""
    if weight.shape[2:] != (3, 3) or x.dtype != weight.dtype or not is_used_for(x.dtype):
        return False
    return share_of_seconds(weight.shape[1], weight.shape[0], *output_size(x, weight, padding)) < LARGEST_SHARE


def output_size(x: Tensor, weight: Tensor, padding: int) -> tuple[int, int]:
    """Height and width of what a convolution of stride 1 makes."""
    height, width = (size + 2 * padding - k + 1 for size, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return height, width


def convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """F.conv2d of x [B, C, H, W] f32 and weight [N, C, 3, 3] f32, rounded otherwise; once differentiable."""
    y: Tensor = _Winograd.apply(x, weight, padding)
    return y


class _Winograd(torch.autograd.Function):
    """The gradients are those of the tiles, so that both take what the forward pass has transformed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        height, width = output_size(x, weight, padding)
        m = tile_of(height, width)
        by = transforms(m)
        filters = _both_axes(by.filters, weight.permute(2, 3, 1, 0)).flatten(0, 1)  # [n * n, C, N]
        y, inputs = _empty_map(len(x), len(weight), height, width), []
        for images, out in zip(x.split(IMAGES), y.split(IMAGES), strict=True):
            tiles = _both_axes(by.inputs, _tiles(images, m + 2, m, height, width, padding))
            inputs.append(tiles)
            _write(_both_axes(by.outputs, _products(tiles, filters)), out)
        ctx.save_for_backward(filters, *inputs)
        ctx.padding, ctx.size = padding, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None]:
        filters, *inputs = ctx.saved_tensors
        m = inputs[0].shape[0] - 2
        by, d_filters = transforms(m), torch.zeros_like(filters)
        d_x = _empty_map(*ctx.size) if ctx.needs_input_grad[0] else None
        for i, (outputs, tiles) in enumerate(zip(g.split(IMAGES), inputs, strict=True)):
            d_outputs = _both_axes(by.outputs.T, _tiles(outputs, m, m, outputs.shape[2], outputs.shape[3], 0))
            d_filters.baddbmm_(_matrices(tiles).mT, _matrices(d_outputs))
            if d_x is not None:
                d_tiles = _both_axes(by.inputs.T, _products(d_outputs, filters.mT))
                _add_up(d_tiles, d_x[i * IMAGES : (i + 1) * IMAGES], ctx.padding)
        d_weight = _both_axes(by.filters.T, d_filters.unflatten(0, (m + 2, m + 2))).permute(3, 2, 0, 1)
        return d_x, d_weight.contiguous(memory_format=torch.channels_last), None


def _both_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """A transform [o, i] of the rows and of the columns of tiles [i, i, ...] -> [o, o, ...]."""
    columns = torch.matmul(matrix, x.flatten(2))  # [i, o, ...]
    return torch.mm(matrix, columns.flatten(1)).view(len(matrix), len(matrix), *x.shape[2:])


def _tiles(x: Tensor, size: int, stride: int, height: int, width: int, padding: int) -> Tensor:
    """x [B, C, H, W] -> [size, size, B, t, u, C]; tiles begin `stride` apart and cover height x width outputs."""
    after = [-(-outputs // stride) * stride + size - stride for outputs in (height, width)]
    rows, columns = (end - pixels - padding for end, pixels in zip(after, x.shape[2:], strict=True))
    if padding or rows or columns:
        x = F.pad(x, (padding, columns, padding, rows))
    x = x.permute(0, 2, 3, 1)
    return x.unfold(1, size, stride).unfold(2, size, stride).permute(4, 5, 0, 1, 2, 3).contiguous()


def _matrices(tiles: Tensor) -> Tensor:
    """[n, n, B, t, u, C] -> [n * n, B * t * u, C]."""
    return tiles.flatten(0, 1).flatten(1, 3)


def _products(tiles: Tensor, filters: Tensor) -> Tensor:
    """Tiles [n, n, B, t, u, C] by filters [n * n, C, N] -> [n, n, B, t, u, N]."""
    return torch.bmm(_matrices(tiles), filters).view(*tiles.shape[:5], filters.shape[2])


def _write(tiles: Tensor, y: Tensor) -> None:
    """Puts tiles [m, m, B, t, u, N] side by side into y [B, N, H, W]; what lies outside is left out."""
    m, _, count, down, across, _ = tiles.shape
    rows = y.permute(0, 2, 3, 1)
    fits = rows.shape[1:3] == (down * m, across * m)
    whole = rows if fits else rows.new_empty(count, down * m, across * m, rows.shape[3])
    whole.view(count, down, m, across, m, -1).copy_(tiles.permute(2, 3, 0, 4, 1, 5))
    if not fits:
        rows.copy_(whole[:, : rows.shape[1], : rows.shape[2]])


def _add_up(tiles: Tensor, x: Tensor, padding: int) -> None:
    """Writes the sums of tiles [n, n, B, t, u, C], two rows and columns of which overlap, to x [B, C, H, W]."""
    n, _, count, down, across, channels = tiles.shape
    m = n - 2
    cells = tiles.new_zeros(count, down + 1, m, across + 1, m, channels)
    for (i, rows), (j, columns) in itertools.product(enumerate((slice(0, m), slice(m, n))), repeat=2):
        part = tiles[rows, columns].permute(2, 3, 0, 4, 1, 5)
        cells[:, i : i + down, : part.shape[2], j : j + across, : part.shape[4]] += part
    sums = cells.flatten(3, 4).flatten(1, 2)[:, padding:, padding:]
    x.copy_(sums[:, : x.shape[2], : x.shape[3]].permute(0, 3, 1, 2))


def _empty_map(*size: int) -> Tensor:
    return torch.empty(size, memory_format=torch.channels_last)
