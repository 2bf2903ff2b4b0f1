"""Shake-Shake, the 26-layer network with two residual branches (Gastaldi 2017, arXiv:1705.07485).

Two branches are added in random proportions, one in the forward pass and another in the backward pass, drawn anew for
each image, block and step ("shake-shake-image"). The paper reports 2.86% error on CIFAR-10 for its 26 2x96d after 1800
epochs. Shapes: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.layers import ACTIVATIONS, conv, make_scaled_norm, start_he
from fastcifar.models.noise import StepNoise, scaled_apart

WIDTHS = {"small": 8, "full": 32, "wide": 96}
"""Channels of the first stage (26 2x32d, 26 2x96d); each next stage has twice as many."""
STEM_CHANNELS = 16
DEPTH = 4
"""Blocks of each of the three stages."""


class Branch(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/stride, W/stride]: activation, 3x3 convolution and norm, twice."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.norm1 = conv(c_in, c_out, norm, stride=stride), make_scaled_norm(c_out, norm)
        self.conv2, self.norm2 = conv(c_out, c_out, norm), make_scaled_norm(c_out, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(self.activation(x)))
        z: Tensor = self.norm2(self.conv2(self.activation(y)))
        return z


class Shortcut(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/stride, W/stride]: every stride-th pixel, and beside it the one a pixel further.

    Each of the two paths makes half of the channels by a 1x1 convolution; a norm follows on both together. The two
    convolutions are the groups of one, so that no gradient is cut into parts that are not channels_last.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation, self.stride = ACTIVATIONS[activation], stride
        self.conv = conv(2 * c_in, c_out, norm, kernel=1, groups=2)
        self.norm = make_scaled_norm(c_out, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(x)
        here = F.avg_pool2d(x, 1, self.stride)
        further = F.avg_pool2d(F.pad(x, (-1, 1, -1, 1)), 1, self.stride)  # right and down by a pixel
        y: Tensor = self.norm(self.conv(torch.cat([here, further], dim=1)))
        return y


class ShakeBlock(nn.Module):
    """shortcut(x) + alpha * branch1(x) + (1 - alpha) * branch2(x); beta takes the place of alpha in the backward pass.

    In evaluation both are 1/2, their expectation.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.branch1, self.branch2 = (Branch(c_in, c_out, stride, norm, activation) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = Shortcut(c_in, c_out, stride, norm, activation)

    def forward(self, x: Tensor, shares: Tensor | None) -> Tensor:
        """shares: alpha and beta [2, B] f32 in [0, 1], or None for evaluation."""
        a, b = self.branch1(x), self.branch2(x)
        y: Tensor = self.shortcut(x)
        if shares is None:
            return y + (a + b) / 2
        alpha, beta = shares
        return y + scaled_apart(a, alpha, beta) + scaled_apart(b, 1 - alpha, 1 - beta)


class ShakeShake(nn.Module):
    """x [B, 3, S, S] -> logits [B, K]. Stem, three stages of four blocks, mean over the pixels, head."""

    def __init__(self, width: int, num_classes: int, norm: str, activation: str, seed: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem, self.norm = conv(3, STEM_CHANNELS, norm), make_scaled_norm(STEM_CHANNELS, norm)
        blocks, c_in = [], STEM_CHANNELS
        for stage, c_out in enumerate((width, 2 * width, 4 * width)):
            for i in range(DEPTH):
                blocks.append(ShakeBlock(c_in, c_out, 2 if stage and not i else 1, norm, activation))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(c_in, num_classes)
        self.noise = StepNoise(seed, 2 * len(blocks))
        start_he(self)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.noise(len(x)).view(len(self.blocks), 2, len(x)) if self.training else None
        x = self.norm(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(x, None if shares is None else shares[i])
        x = self.activation(x).mean(dim=(2, 3))
        return self.head(x).float()
