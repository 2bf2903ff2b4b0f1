"""Layers that the networks share: convolutions, norms, activations and how filters start.

Shapes: B images, C channels, H W pixels. All weights and activations are channels_last.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.cpu_conv import TapwiseConv2d

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are standardised to zero mean and unit gain (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        var, mean = torch.var_mean(w.float(), dim=(1, 2, 3), keepdim=True, correction=0)
        w = ((w - mean) * torch.rsqrt(var * w[0].numel() + 1e-6)).to(w.dtype)
        return self._conv_forward(x, w, self.bias)


def conv(
    c_in: int, c_out: int, norm: str, kernel: int = 3, stride: int = 1, groups: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution without bias; its default padding keeps H and W of an odd kernel (up to the stride)."""
    kind: type[nn.Conv2d] = StandardizedConv2d if norm == "gn-ws" else nn.Conv2d
    if kind is nn.Conv2d and stride == groups == 1:
        kind = TapwiseConv2d
    padding = kernel // 2 if padding is None else padding
    return kind(c_in, c_out, kernel, stride=stride, padding=padding, groups=groups, bias=False)


def border_before_pool(size: Sequence[int], kernel: int) -> tuple[int, int, int]:
    """The border of `pad_before_pool` for a map of (height, width): rows and columns before it, rows after it, columns
    after it. A filter of one pixel has the odd row cut off, -1."""
    before = (kernel - 1) // 2
    after_y, after_x = (kernel - 1 - before - pixels % 2 for pixels in size)
    return before, after_y, after_x


def pad_before_pool(x: Tensor, kernel: int) -> Tensor:
    """[B, C, H, W] -> x with the zero border that a convolution before a 2x2 max-pool needs, in place of a padding.

    The pool drops the last row and column of an odd size. With this border they are not computed: the outputs are those
    of "same" padding, [B, C', 2 * (H // 2), 2 * (W // 2)], for 6 to 29% fewer products. The pooled result is the same.
    """
    before, after_y, after_x = border_before_pool(x.shape[2:], kernel)
    return F.pad(x, (before, after_x, before, after_y))


def start_as_identity(layer: nn.Conv2d) -> nn.Conv2d:
    """Its first filters pass the channels on as they are (airbench); standardised ones cannot."""
    if not isinstance(layer, StandardizedConv2d):
        nn.init.dirac_(layer.weight.data[: min(layer.weight.shape[:2])])
    return layer


def start_as_cosines(layer: nn.Conv2d) -> nn.Conv2d:
    """The filters behind the identity ones start as the rows of a 2-D cosine transform, each on one input channel.

    Filter n reads channel n mod C_in; its frequencies run through all but the constant one (DCT-II, orthonormal).
    Source: entries of the CIFAR-100 speedrun hackathon of October 2026.
    """
    c_out, c_in, height, width = layer.weight.shape
    rows = torch.cos(math.pi / height * (torch.arange(height) + 0.5) * torch.arange(height)[:, None])
    columns = torch.cos(math.pi / width * (torch.arange(width) + 0.5) * torch.arange(width)[:, None])
    waves = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1)[1:]  # [frequency, H, W]
    with torch.no_grad():
        for n in range(c_in, c_out if len(waves) else c_in):
            wave = waves[(n // c_in - 1) % len(waves)]
            layer.weight[n] = 0
            layer.weight[n, n % c_in] = wave / wave.norm()
    return layer


def make_norm(channels: int, norm: str) -> nn.Module:
    """Batch norm with its scale fixed at 1 (hlb-CIFAR10: the next filter can scale) or group norm of 8 groups."""
    if norm == "gn-ws":
        return nn.GroupNorm(8, channels)
    layer = nn.BatchNorm2d(channels, momentum=0.4)  # short runs: the running statistics must follow the weights
    layer.weight.requires_grad = False
    return layer
