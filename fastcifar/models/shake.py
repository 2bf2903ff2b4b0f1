"""Two networks whose residual branches are multiplied by random factors, for long runs.

Shake-Shake, 26 layers with two residual branches (Gastaldi 2017, arXiv:1705.07485): the branches are added in random
proportions, one in the forward pass and another in the backward pass, drawn anew for each image, block and step
("shake-shake-image"). The paper reports 2.86% error on CIFAR-10 for its 26 2x96d after 1800 epochs.

ShakeDrop (Yamada et al. 2018, arXiv:1802.02375) on a PyramidNet (Han et al. 2017, arXiv:1610.02915). A pyramidal
network widens in every block by the same number of channels. ShakeDrop lets each block through as it is with a
probability that falls from block to block to 1/2, and otherwise multiplies it by noise. Here it is a reduced PyramidNet
of 26 layers, three stages of basic blocks.

Shapes: B images, C channels, H W pixels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.layers import ACTIVATIONS, conv
from fastcifar.models.noise import StepNoise, scaled_apart

STAGES, DEPTH = 3, 4
"""Stages, and blocks of each."""
SHAKE_SHAKE_WIDTHS = {"small": 8, "full": 32, "wide": 96}
"""Channels of the first stage (26 2x32d, 26 2x96d); each next stage has twice as many."""
STEM_CHANNELS = 16
SHAKE_DROP_WIDTHS = {"small": (8, 24), "full": (16, 192), "wide": (16, 384)}
"""Channels of the stem, and how many the blocks add to them together, in multiples of 8: 8 to 32, 16 to 208 or 400."""
LAST_KEPT = 0.5
"""Probability that the last block passes as it is; that of the others falls to it in equal steps from 1."""


def make_scaled_norm(channels: int, norm: str) -> nn.Module:
    """Batch norm as published (Ioffe & Szegedy 2015, arXiv:1502.03167), with a trained scale, or group norm of 8.

    For the networks of long runs: their residual branches are weighed by the scales of their last norms.
    """
    return nn.GroupNorm(8, channels) if norm == "gn-ws" else nn.BatchNorm2d(channels)


def start_he(model: nn.Module) -> None:
    """Draws all filters anew from N(0, 2 / fan-out) (He et al. 2015, arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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


def keep_probabilities(blocks: int) -> list[float]:
    """Linear decay over the blocks 1 to L: 1 - l / L * (1 - LAST_KEPT)."""
    return [1 - (i + 1) / blocks * (1 - LAST_KEPT) for i in range(blocks)]


class DropBlock(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/stride, W/stride]: a pyramidal basic block whose residual branch is shaken.

    The branch is norm, 3x3 convolution, norm, activation, 3x3 convolution, norm. The shortcut averages pixels and adds
    channels of zeros. The branch is multiplied by b + alpha - b * alpha, its gradient by b + beta - b * beta: b is 1
    with probability `keep` and else 0, alpha is uniform in [-1, 1] and beta in [0, 1], drawn for each image. In
    evaluation the factor is its expectation, `keep`.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, keep: float, norm: str, activation: str) -> None:
        super().__init__()
        self.activation, self.stride, self.keep, self.added = ACTIVATIONS[activation], stride, keep, c_out - c_in
        self.norm0 = make_scaled_norm(c_in, norm)
        self.conv1, self.norm1 = conv(c_in, c_out, norm, stride=stride), make_scaled_norm(c_out, norm)
        self.conv2, self.norm2 = conv(c_out, c_out, norm), make_scaled_norm(c_out, norm)

    def forward(self, x: Tensor, uniform: Tensor | None) -> Tensor:
        """uniform: three numbers per image [3, B] f32 in [0, 1), for b, alpha and beta, or None for evaluation."""
        y = self.activation(self.norm1(self.conv1(self.norm0(x))))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        if uniform is None:
            return x + y * self.keep
        return x + scaled_apart(y, *self.factors(uniform))

    def factors(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward factor of each image, [B] f32, from uniform numbers [3, B]."""
        b = (uniform[0] < self.keep).float()
        alpha, beta = uniform[1] * 2 - 1, uniform[2]
        return b + alpha - b * alpha, b + beta - b * beta


class ShakeDrop(nn.Module):
    """x [B, 3, S, S] -> logits [B, K]. Stem, three stages of four blocks, mean over the pixels, head."""

    def __init__(self, widths: tuple[int, int], num_classes: int, norm: str, activation: str, seed: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        first, growth = widths
        self.stem, self.norm = conv(3, first, norm), make_scaled_norm(first, norm)
        blocks, c_in, count = [], first, STAGES * DEPTH
        for i, keep in enumerate(keep_probabilities(count)):
            c_out = (first + growth * (i + 1) // count) // 8 * 8
            blocks.append(DropBlock(c_in, c_out, 2 if i and i % DEPTH == 0 else 1, keep, norm, activation))
            c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.last_norm = make_scaled_norm(c_in, norm)
        self.head = nn.Linear(c_in, num_classes)
        self.noise = StepNoise(seed, 3 * count)
        start_he(self)

    def forward(self, x: Tensor) -> Tensor:
        uniform = self.noise(len(x)).view(len(self.blocks), 3, len(x)) if self.training else None
        x = self.norm(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(x, None if uniform is None else uniform[i])
        x = self.activation(self.last_norm(x)).mean(dim=(2, 3))
        return self.head(x).float()
