"""Convolutions that a CPU trains faster than by its own kernels: 3x3 filters in fp32 by Winograd's products, and weight
gradients of small maps by a product for each tap.

oneDNN's weight gradients reach 20 to 25 GFLOP/s on maps of a few pixels where its forward pass and a matrix product
reach 40 (AVX2, fp32). One product for each tap of the filter needs 0.23 to 0.80 times the seconds (docs/log).

Shapes: B images, C channels, H W pixels; all activations are channels_last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcifar.models import winograd

LEAST_CHANNELS, MOST_PIXELS = 128, 100
"""From so many channels on both sides and up to so many pixels, products were faster on every map that was measured."""


class CpuConv2d(nn.Conv2d):
    """nn.Conv2d of stride 1 without bias; in training mode a CPU takes the faster way, in evaluation torch's own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = int(self.padding[0])
        trains = input.device.type == "cpu" and self.training and weight.requires_grad
        if not trains or torch.compiler.is_compiling():
            return super()._conv_forward(input, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        if winograd.pays(input, weight, padding):
            return winograd.convolution(input, weight, padding)
        if pays(input, weight, padding):
            y: Tensor = _TapwiseConvolution.apply(input, weight, padding)
            return y
        return super()._conv_forward(input, weight, bias)


def pays(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether the weight gradient of such a convolution is faster as products."""
    height, width = winograd.output_size(x, weight, padding)
    return min(weight.shape[:2]) >= LEAST_CHANNELS and height * width <= MOST_PIXELS


class _TapwiseConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        d_x = None
        if ctx.needs_input_grad[0]:
            padding, one, none = [ctx.padding] * 2, [1, 1], [0, 0]
            d_x, _, _ = torch.ops.aten.convolution_backward(
                g, x, weight, None, one, padding, one, False, none, 1, [True, False, False]
            )
        return d_x, weight_gradient(g, x, weight, ctx.padding), None


def weight_gradient(g: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Gradient like weight [C', C, K, K] from g [B, C', H', W'] and x [B, C, H, W]; taps read no padding."""
    (c_out, c_in, height, width), rows, pixels = weight.shape, g.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    taps = torch.empty(height, width, c_out, c_in, dtype=g.dtype)
    for i in range(height):
        top, bottom = _reach(i - padding, g.shape[2], x.shape[2])
        for j in range(width):
            left, right = _reach(j - padding, g.shape[3], x.shape[3])
            ours = rows[:, top:bottom, left:right].reshape(-1, c_out)
            theirs = pixels[:, top + i - padding : bottom + i - padding, left + j - padding : right + j - padding]
            torch.mm(ours.T, theirs.reshape(-1, c_in), out=taps[i, j])
    return taps.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _reach(shift: int, outputs: int, inputs: int) -> tuple[int, int]:
    """First and last (exclusive) output whose input, `shift` further on, lies inside the map."""
    return max(0, -shift), min(outputs, inputs - shift)
