"""The last part of a layer in evaluation, where no gradient is needed: in plain torch, or in one kernel on a card.

Shapes: B images, C channels, H W pixels. All tensors are channels_last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.models.launch import farthest, launch
from fastcifar.models.layers import ACTIVATIONS, border_before_pool, pad_before_pool

BLOCK_M, BLOCK_C, NUM_WARPS = 128, 32, 4
"""Rows and channels of a program, and its warps. Not tuned on a card."""


def bias_activation(
    x: Tensor, bias: Tensor, activation: str, pool: bool = False, plus: Tensor | None = None,
    scale: Tensor | None = None, border: int = 0, kernel: bool = False,
) -> Tensor:  # fmt: skip
    """activation(x + bias), of the 2x2 max-pool of x [B, C, H, W] with `pool`, or of x + bias + scale * plus.

    bias, scale: [C] f32. plus: of the shape of x. border: size of the filters of a pooled convolution that reads the
    output, which then has its zero border (`pad_before_pool`). kernel: by Triton.
    """
    if not kernel:
        y = (F.max_pool2d(x, 2) if pool else x).float() + bias[:, None, None]
        if plus is not None and scale is not None:
            y = y + scale[:, None, None] * plus
        y = ACTIVATIONS[activation](y).to(x.dtype)
        return pad_before_pool(y, border) if border else y
    height, width = (size // 2 if pool else size for size in x.shape[2:])
    before, after_y, after_x = border_before_pool((height, width), border) if border else (0, 0, 0)
    shape = (height + before + after_y, width + before + after_x)
    y = torch.empty(*x.shape[:2], *shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows, channels = y.numel() // y.shape[1], y.shape[1]
    x = x.contiguous(memory_format=torch.channels_last)
    grid = (-(-rows // BLOCK_M), -(-channels // BLOCK_C))
    launch("models.forward_kernels.bias_activation", grid, x, plus, scale, bias, y, rows, *x.shape[2:], *shape,
           before, channels, POOL=pool, ACT=activation, BLOCK_M=BLOCK_M, BLOCK_C=BLOCK_C,
           num_warps=NUM_WARPS)  # fmt: skip
    return y


def largest_difference(activation: str, dtype: torch.dtype, device: torch.device) -> float:
    """Between the kernels and plain torch, over random numbers; inf where one has NaN."""
    generator = torch.Generator().manual_seed(0)
    x, plus = (torch.randn(4, 40, 9, 7, generator=generator).to(device, dtype).contiguous(
        memory_format=torch.channels_last) for _ in range(2))  # fmt: skip
    bias, scale = (torch.randn(40, generator=generator).to(device) for _ in range(2))
    expected, found = (
        [bias_activation(x, bias, activation, **settings, kernel=kernel)
         for settings in ({"pool": True}, {"border": 3}, {"plus": plus, "scale": scale})]
        for kernel in (False, True)
    )  # fmt: skip
    return farthest(expected, found)
