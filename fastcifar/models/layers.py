"""Layers that the networks share: convolutions, norms, activations and how filters start.

Shapes: B images, C channels, H W pixels. All weights and activations are channels_last.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.models.cpu_conv import CpuConv2d
from fastcifar.models.standardized import StandardizedConv2d

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def conv(
    c_in: int, c_out: int, norm: str, kernel: int = 3, stride: int = 1, groups: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution without bias; its default padding keeps H and W of an odd kernel (up to the stride)."""
    kind: type[nn.Conv2d] = StandardizedConv2d if norm == "gn-ws" else nn.Conv2d
    if kind is nn.Conv2d and stride == groups == 1:
        kind = CpuConv2d
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


def make_norm(channels: int, norm: str) -> nn.Module:
    """Batch norm with its scale fixed at 1 (hlb-CIFAR10: the next filter can scale) or group norm of 8 groups."""
    if norm == "gn-ws":
        return nn.GroupNorm(8, channels)
    layer = nn.BatchNorm2d(channels, momentum=0.4)  # short runs: the running statistics must follow the weights
    layer.weight.requires_grad = False
    return layer
