"""Batch norm together with what stands around it: one function, by plain torch or by the kernels of `kernels.py`.

Step by step, a pool, a norm and an activation read and write the same activations again and again, and max-pool's
indices take 8 bytes each. The kernels read each tensor once per pass over the batch and keep one byte per maximum.
Plain torch is what they are compared with, and runs everywhere else: on a CPU, in evaluation, under torch.compile
(which fuses by itself), with statistics over several processes.

Shapes: B images, C channels, H W pixels, M = B * H * W rows of a norm's input.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcifar.models import forward
from fastcifar.models.launch import TOLERANCE, farthest, launch, require_close, tried
from fastcifar.models.layers import ACTIVATIONS, border_before_pool, pad_before_pool

BLOCK_C, NUM_WARPS = 32, 8
"""Channels of a tile; warps of a program."""
REDUCE, APPLY = (128, 256), (64, 512)
"""Rows of a tile and most programs, of a kernel that reduces over rows and of one that writes them: a few programs for
each multiprocessor. Each of the second kind reads the parts that all of the first kind wrote. Not tuned on a card."""
NAMES = {function: name for name, function in ACTIVATIONS.items()}


class FusedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training may use the kernels, where `norm_activation` calls it. Made by `fuse`."""


def norm_activation(
    norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor], pool: bool = False, plus: Tensor | None = None,
    border: int = 0,
) -> Tensor:  # fmt: skip
    """activation(norm(x)), norm of x + plus or of its 2x2 max-pool: [B, C, H, W] -> that, or [B, C, H // 2, W // 2].

    `border`: size of the filters of a pooled convolution that reads the output, which then has its zero border.
    """
    if uses_kernels(norm, activation) and fits(x, plus) and border != 1:
        return _NormActivation.apply(x, plus, norm.weight, norm.bias, norm, NAMES[activation], pool, border)
    x = x if plus is None else plus + x
    x = F.max_pool2d(x, 2) if pool else x
    x = activation(norm(x))
    return pad_before_pool(x, border) if border else x


def border_activation(norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor], border: int) -> Tensor:
    """activation(x) with the zero border for filters of size `border`; `norm` is the next one, which has the choice."""
    if uses_kernels(norm, activation) and fits(x, None) and border > 1:
        return _BorderActivation.apply(x, NAMES[activation], border)
    return pad_before_pool(activation(x), border)


def uses_kernels(norm: nn.Module, activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether this forward pass goes through the kernels, where their input fits."""
    return isinstance(norm, FusedBatchNorm2d) and norm.training and activation in NAMES


def fits(x: Tensor, plus: Tensor | None) -> bool:
    """Whether the kernels can read x [B, C, H, W]: they count in 32 bits, on a card, channels_last."""
    if not x.is_cuda or x.dtype not in TOLERANCE or torch.compiler.is_compiling():
        return False
    same = plus is None or (plus.dtype == x.dtype and plus.shape == x.shape)
    last = all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, plus) if t is not None)
    return same and last and x.numel() < 2**31 and len(x) > 1


def run(name: str, grid: tuple[int, int], tiling: tuple[int, int], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel of `kernels.py`."""
    launch(f"models.kernels.{name}", grid, *arguments, **constants, BLOCK_M=tiling[0], BLOCK_C=BLOCK_C,
           num_warps=NUM_WARPS)  # fmt: skip


def grid_of(rows: int, channels: int, tiling: tuple[int, int], block_c: int = BLOCK_C) -> tuple[int, tuple[int, int]]:
    """Rows of a program, and the grid: programs along the rows, and along the channels. None has nothing to do."""
    (tile, programs), across = tiling, -(-channels // block_c)
    each = -(-rows // tile // max(1, programs // across)) * tile
    return each, (-(-rows // each), across)


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """[B, *shape], channels_last, not initialised."""
    return torch.empty(
        (len(like), *shape), dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _with_border(size: Sequence[int], border: int) -> tuple[int, int, int, int, int]:
    """Height and width without and with the border, and how many rows of it come first: as the kernels take them."""
    (height, width), (before, after_y, after_x) = size, border_before_pool(size, border) if border else (0, 0, 0)
    return height, width, height + before + after_y, width + before + after_x, before


class _BorderActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str, border: int) -> Tensor:
        ctx.activation, ctx.sizes = activation, _with_border(x.shape[2:], border)
        y = empty(x, x.shape[1], *ctx.sizes[2:4])
        rows = y.numel() // x.shape[1]
        each, grid = grid_of(rows, x.shape[1], APPLY)
        run("activate", grid, APPLY, x, y, rows, each, *ctx.sizes, x.shape[1], ACT=activation)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        g = g.contiguous(memory_format=torch.channels_last)
        d_x = torch.empty_like(x)
        rows = x.numel() // x.shape[1]
        each, grid = grid_of(rows, x.shape[1], APPLY)
        run("activation_gradient", grid, APPLY, g, x, d_x, rows, each, *ctx.sizes, x.shape[1],
               ACT=ctx.activation)  # fmt: skip
        return d_x, None, None


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plus: Tensor | None, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: str,
        pool: bool, border: int,
    ) -> Tensor:  # fmt: skip
        z, code, parts, part_rows = statistics(x, plus, pool)
        y, saved, ctx.sizes = normalize(norm, z, parts, part_rows, activation, border)
        ctx.save_for_backward(z, code, saved, weight, bias)
        ctx.input_shape, ctx.activation, ctx.has_plus = x.shape, activation, plus is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, code, *norm = ctx.saved_tensors
        d_x, d_weight, d_bias = norm_gradients(g, z, code, norm, ctx.input_shape, ctx.sizes, ctx.activation)
        return d_x, d_x if ctx.has_plus else None, d_weight, d_bias, None, None, None, None


def statistics(x: Tensor, plus: Tensor | None, pool: bool) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """What a norm takes: x, x + plus or the max-pool of x with its code; and the parts for `normalize`, their rows."""
    channels, height, width = x.shape[1:]
    shape = (channels, height // 2, width // 2) if pool else (channels, height, width)
    z = empty(x, *shape) if pool or plus is not None else x
    code = empty(x, *shape, dtype=torch.uint8) if pool else None
    rows = z.numel() // channels
    part_rows, grid = grid_of(rows, channels, REDUCE)
    parts = torch.empty(2, grid[0], channels, device=x.device)
    run("statistics", grid, REDUCE, x, plus, None if z is x else z, code, parts, rows, part_rows, height, width,
           channels)  # fmt: skip
    return z, code, parts, part_rows


def normalize(
    norm: nn.BatchNorm2d, z: Tensor, parts: Tensor, part_rows: int, activation: str, border: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """activation(norm(z)) with its border, the batch's statistics [2, C] f32, and sizes for `norm_gradients`.

    `parts` [2, parts, C] f32: mean and sum of squared deviations of every `part_rows` rows of z.
    """
    channels, sizes = z.shape[1], _with_border(z.shape[2:], border)
    y, saved = empty(z, channels, *sizes[2:4]), torch.empty(2, channels, device=z.device)
    rows, y_rows = z.numel() // channels, y.numel() // channels
    each, grid = grid_of(y_rows, channels, APPLY)
    run("normalize", grid, APPLY, z, y, parts, saved, norm.weight, norm.bias, norm.running_mean, norm.running_var,
           norm.num_batches_tracked, rows, y_rows, each, parts.shape[1], part_rows, norm.momentum, norm.eps, *sizes,
           channels, BORDER=y_rows != rows, ACT=activation)  # fmt: skip
    return y, saved, sizes


def norm_gradients(
    g: Tensor, z: Tensor, code: Tensor | None, norm: Sequence[Tensor], shape: Sequence[int], sizes: tuple[int, ...],
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of z, or with `code` of what was pooled, [B, C, H, W] = shape; and of the norm's weight and bias.

    `norm`: the statistics of `normalize`, weight and bias.
    """
    (batch, channels, height, width), (saved, weight, bias) = shape, norm
    g, rows = g.contiguous(memory_format=torch.channels_last), z.numel() // channels
    has_border = g.shape[2:] != z.shape[2:]
    each, grid = grid_of(rows, channels, REDUCE)
    parts = torch.empty(2, grid[0], channels, device=z.device)
    run("gradient_sums", grid, REDUCE, g, z, saved, weight, bias, parts, rows, each, *sizes, channels,
           BORDER=has_border, ACT=activation)  # fmt: skip
    d_x, d_weight, d_bias = empty(z, channels, height, width), torch.empty_like(weight), torch.empty_like(bias)
    cells = rows if code is None else batch * -(-height // 2) * -(-width // 2)
    each, wide = grid_of(cells, channels, APPLY)
    run("input_gradient", wide, APPLY, g, z, code, saved, weight, bias, parts, d_x, d_weight, d_bias, rows, cells,
           each, grid[0], height, width, *sizes[2:], channels, BORDER=has_border, ACT=activation)  # fmt: skip
    return d_x, d_weight, d_bias


def fuse(model: nn.Module, activation: str, dtype: torch.dtype) -> bool:
    """Lets the model's batch norms use the kernels, if those run here and agree with plain torch on random numbers.

    A reason against it is logged in one line. Builds all kernels of a run; statistics of the model do not change.
    """
    norms = use_kernels(model)
    with tried("the fused kernels"):
        if norms:
            require_close(largest_difference(norms[0], activation, dtype), TOLERANCE[dtype])
        return bool(norms)
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d
    return False


def use_kernels(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Lets batch norms use the kernels (in place, keys unchanged): not those over several processes, a class of their
    own. Returns them."""
    norms = [m for m in model.modules() if type(m) is nn.BatchNorm2d and m.momentum is not None]
    for norm in norms:
        norm.__class__ = FusedBatchNorm2d
    return norms


def is_fused(model: nn.Module) -> bool:
    """Whether the training of the model uses the kernels: `fuse` has found them right."""
    return any(isinstance(module, FusedBatchNorm2d) for module in model.modules())


def largest_difference(norm: nn.BatchNorm2d, activation: str, dtype: torch.dtype) -> float:
    """Between the kernels and plain torch, over outputs, gradients and running statistics; inf where one has NaN."""
    generator, device = torch.Generator().manual_seed(0), norm.weight.device
    draws = [torch.randn(8, norm.num_features, *size, generator=generator) for size in ((9, 7), (9, 7), (12, 10))]
    x, plus, g = (t.to(device, dtype, memory_format=torch.channels_last) for t in draws)
    largest = 0.0
    for pool, has_plus, border in ((False, False, 0), (True, False, 0), (False, True, 0), (False, False, 3)):
        results = []
        for kind in (nn.BatchNorm2d, FusedBatchNorm2d):
            twin = copy.deepcopy(norm).train()
            twin.__class__ = kind
            inputs = [t.clone().requires_grad_() for t in ([x, plus] if has_plus else [x])]
            y, function = inputs[0], ACTIVATIONS[activation]
            if border:
                y = border_activation(twin, y, function, border)
            y = norm_activation(twin, y, function, pool, inputs[1] if has_plus else None, border)
            y.backward(g[:, :, : y.shape[2], : y.shape[3]])
            grads = [t.grad for t in (*inputs, *twin.parameters()) if t.grad is not None]
            results.append([y.detach(), *grads, *twin.buffers()])
        largest = max(largest, farthest(*results))
    return max(largest, forward.largest_difference(activation, dtype, device))
