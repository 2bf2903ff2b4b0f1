"""A convolution, 2x2 max-pool, batch norm and activation as one function, by cuDNN and `fused`, or by own kernels.

What the convolution makes is needed for the pool alone, and three of four of its gradients are zero. The kernels of
`conv_kernels.py` never write either of them.

Shapes: B images, C channels in, N out, H W pixels with the zero border of `layers.pad_before_pool`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcifar.models import fused
from fastcifar.models.fused import NAMES, empty, norm_activation, norm_gradients, normalize
from fastcifar.models.launch import launch

PROGRAMS = 264
"""About as many as an H100 runs at a time, two on each multiprocessor. Not tuned on a card."""
BLOCK_TO_ADD = 128
"""Numbers of a weight gradient whose parts a program adds up."""


class Kernels(NamedTuple):
    """Which passes of a layer use the kernels of `conv_kernels.py`."""

    forward: bool
    backward: bool

    def __str__(self) -> str:
        return " and ".join(name for name, used in self._asdict().items() if used) or "none"


PLAIN = Kernels(False, False)


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time, and how: rows, columns, terms of a sum; warps, stages of the pipeline."""

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


def tile_of(kernel: str, c_in: int, c_out: int) -> Tile:
    """Of a kernel of `conv_kernels.py`. 64 rows are the fewest for Hopper's products, 227 KB all memory of a program.

    Rows: cells, pixels, filters. Not tuned on a card.
    """
    if kernel == "conv_pool_stats":
        return Tile(64, 64, 32, 4, 3) if c_out <= 64 else Tile(64, 128, 64, 8, 3)
    if kernel == "input_gradient_of_pooled":
        columns = 32 if c_in <= 32 else 64 if c_in <= 64 else 128
        return Tile(128, columns, 64, 8 if columns == 128 else 4, 3)
    return Tile(64, 128, 32, 4, 3) if c_out <= 64 else Tile(128, 128, 32, 8, 3)


def run(
    conv: nn.Module, norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor], kernels: Kernels
) -> Tensor:
    """The function by the given kernels."""
    if kernels == PLAIN:
        return norm_activation(norm, conv(x), activation, pool=True)
    filters: Any = conv.weight
    filters = filters.to(x.dtype)
    return _ConvPoolNorm.apply(x, filters, norm.weight, norm.bias, norm, NAMES[activation], kernels)


def run_tiles(name: str, grid: tuple[int, ...], tile: Tile, *arguments: Any, **sizes: int) -> None:
    """Launches a kernel of `conv_kernels.py`."""
    launch(f"models.conv_kernels.{name}", grid, *arguments, **sizes, BLOCK_M=tile.rows, BLOCK_N=tile.columns,
           BLOCK_K=tile.terms, num_warps=tile.warps, num_stages=tile.stages)  # fmt: skip


class _ConvPoolNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, filters: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: str,
        kernels: Kernels,
    ) -> Tensor:  # fmt: skip
        made = pooled_statistics(x, filters) if kernels.forward else fused.statistics(F.conv2d(x, filters), None, True)
        z, code, parts, part_rows = made
        y, saved, ctx.sizes = normalize(norm, z, parts, part_rows, activation, border=0)
        ctx.save_for_backward(x, filters, z, code, saved, weight, bias)
        ctx.activation, ctx.kernels = activation, kernels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, filters, z, code, *norm = ctx.saved_tensors
        needs_x, needs_filters = ctx.needs_input_grad[:2]
        d_x = d_filters = None
        if ctx.kernels.backward:
            d, *d_norm = norm_gradients(g, z, None, norm, z.shape, ctx.sizes, ctx.activation)
            d_x = input_gradient(d, code, filters, x) if needs_x else None
            d_filters = weight_gradient(x, d, code, filters) if needs_filters else None
        else:
            shape = (*z.shape[:2], *(pixels - filters.shape[2] + 1 for pixels in x.shape[2:]))
            d, *d_norm = norm_gradients(g, z, code, norm, shape, ctx.sizes, ctx.activation)
            d_x, d_filters, _ = torch.ops.aten.convolution_backward(
                d, x, filters, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (needs_x, needs_filters, False)
            )
        return d_x, d_filters, *d_norm, None, None, None


def pooled_statistics(x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Maxima z [B, N, h, w] of the convolution, their code, and parts of their statistics, as `fused.statistics`."""
    (c_out, c_in, kernel), (height, width) = filters.shape[:3], x.shape[2:]
    z = empty(x, c_out, (height - kernel + 1) // 2, (width - kernel + 1) // 2)
    code = torch.empty_like(z, dtype=torch.uint8)
    kind, cells = tile_of("conv_pool_stats", c_in, c_out), z.numel() // c_out
    each, grid = fused.grid_of(cells, c_out, (kind.rows, PROGRAMS), kind.columns)
    parts = torch.empty(2, grid[0], c_out, device=x.device)
    run_tiles("conv_pool_stats", grid, kind, x, filters, z, code, parts, cells, each, height, width, C=c_in, N=c_out,
           KERNEL=kernel)  # fmt: skip
    return z, code, parts, each


def input_gradient(d: Tensor, code: Tensor, filters: Tensor, x: Tensor) -> Tensor:
    """Gradient of x from that of the maxima, d. The border's first rows and columns are not written."""
    (c_out, c_in, kernel), (height, width) = filters.shape[:3], x.shape[2:]
    d_x, before = torch.empty_like(x), (kernel - 1) // 2
    kind, pixels = tile_of("input_gradient_of_pooled", c_in, c_out), len(x) * (height - before) * (width - before)
    grid = (-(-pixels // kind.rows), -(-c_in // kind.columns))
    run_tiles("input_gradient_of_pooled", grid, kind, d, code, filters, d_x, pixels, height, width, C=c_in, N=c_out,
           KERNEL=kernel)  # fmt: skip
    return d_x


def weight_gradient(x: Tensor, d: Tensor, code: Tensor, filters: Tensor) -> Tensor:
    """Gradient of the filters [N, C, k, k] from that of the maxima, d."""
    (c_out, c_in, kernel), cells = filters.shape[:3], d.numel() // d.shape[1]
    kind, numbers = tile_of("weight_gradient_of_pooled", c_in, c_out), filters[0].numel()
    tiles = (-(-c_out // kind.rows), -(-numbers // kind.columns))
    each = -(-cells // kind.terms // max(1, PROGRAMS // (tiles[0] * tiles[1]))) * kind.terms
    parts = torch.empty(-(-cells // each), *filters.shape, device=x.device)
    run_tiles("weight_gradient_of_pooled", (len(parts), *tiles), kind, x, d, code, parts, cells, each, *x.shape[2:],
           C=c_in, N=c_out, KERNEL=kernel)  # fmt: skip
    d_filters = torch.empty_like(filters)  # channels_last, as the parts lie
    grid = (-(-filters.numel() // BLOCK_TO_ADD),)
    launch("models.conv_kernels.add_parts", grid, parts, d_filters, len(parts), filters.numel(), BLOCK=BLOCK_TO_ADD)
    return d_filters
