"""The networks and their initialisation. All weights and activations are channels_last.

Shapes: B images, C channels, H W pixels, K classes. FLOP are per image, forward and backward, 1 multiply-add = 2.

resnet9 (default) follows the line ResNet-9 (Page 2018) -> hlb-CIFAR10 (Balsam 2023) -> airbench (Jordan 2024,
arXiv:2404.00498): a fixed whitening convolution made from the data, three stages of convolution, max-pool and a
residual convolution, identity-initialised filters, norms without a scale of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = {"full": (24, 64, 256, 256), "small": (16, 16, 64, 64), "wide": (24, 128, 384, 512)}
"""Channels of stem and three stages of resnet9: 0.74 GFLOP per image, 0.05 to end in minutes on 2 CPU cores, or 2.7
for the last points (the widths and depth of airbench96).

The stem holds the strongest principal directions of 2x2x3 patches, each with both signs: at most 24.
"""
DEPTHS = {"full": (2, 2, 3), "small": (2, 2, 3), "wide": (3, 3, 3)}
"""Convolutions of the three stages; where there are three, the last two are a residual block."""
LOGIT_SCALE = 4.0
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are standardised to zero mean and unit gain (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        var, mean = torch.var_mean(w.float(), dim=(1, 2, 3), keepdim=True, correction=0)
        w = ((w - mean) * torch.rsqrt(var * w[0].numel() + 1e-6)).to(w.dtype)
        return self._conv_forward(x, w, self.bias)


def conv(c_in: int, c_out: int, norm: str, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps H and W (up to the stride)."""
    kind = StandardizedConv2d if norm == "gn-ws" else nn.Conv2d
    return kind(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)


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


class Stage(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/2, W/2]: convolution and pool, then a second convolution or a residual block of two.

    The block's sum is inside its last norm: with filters of fixed norm (Muon) a sum after the norm lost 3 points, and a
    shortcut over a single convolution half a point (LOG.md).
    """

    def __init__(self, c_in: int, c_out: int, depth: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation, self.depth = ACTIVATIONS[activation], depth
        self.conv1, self.norm1 = start_as_identity(conv(c_in, c_out, norm)), make_norm(c_out, norm)
        self.conv2, self.norm2 = start_as_identity(conv(c_out, c_out, norm)), make_norm(c_out, norm)
        if depth == 3:
            self.conv3, self.norm3 = start_as_identity(conv(c_out, c_out, norm)), make_norm(c_out, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = self.activation(self.norm2(self.conv2(x)))
        return self.activation(self.norm3(x + self.conv3(y))) if self.depth == 3 else y


class ResNet9(nn.Module):
    """x [B, 3, S, S] -> logits [B, K]; S = 32, or at least 16 in the low-resolution part of a run."""

    def __init__(
        self, widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int, norm: str, activation: str
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem = nn.Conv2d(3, widths[0], kernel_size=2)
        self.stem.weight.requires_grad = False
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        stages = zip(pairwise(widths), depths, strict=True)
        self.stages = nn.Sequential(*(Stage(i, o, depth, norm, activation) for (i, o), depth in stages))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight)
        self.logit_scale = LOGIT_SCALE / widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))  # [B, C0, S-1, S-1]
        x = self.stages(x)  # [B, C, 3, 3] for S = 32
        x = x.amax(dim=(2, 3))  # [B, C]
        return self.head(x).float() * self.logit_scale

    @torch.no_grad()
    def whitening_filters(self, images: Tensor, eps: float = 5e-4) -> Tensor:
        """Filters [C0, 3, 2, 2] f64 for the stem, from normalised images [N, 3, H, W] f32, computed where they lie:
        the stem's outputs on 2x2 patches become uncorrelated.

        PCA whitening of patches as a first layer: Page 2019 ("How to train your ResNet 8"), both signs: airbench.
        """
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu())
        strongest = (vectors.T / (values[:, None] + eps).sqrt())[-(len(self.stem.weight) // 2) :]  # eigh sorts upwards
        filters = strongest.view(-1, 3, 2, 2)
        return torch.cat([filters, -filters])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.norm1 = conv(c_in, c_out, norm, stride=stride), make_norm(c_out, norm)
        self.conv2, self.norm2 = conv(c_out, c_out, norm), make_norm(c_out, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(c_in, c_out, norm, kernel=1, stride=stride), make_norm(c_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The classic baseline for 32x32 images: 3x3 stem without pooling, four stages of two blocks; 3.33 GFLOP."""

    def __init__(self, width: int, num_classes: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem, self.norm = conv(3, width, norm), make_norm(width, norm)
        widths, blocks, c_in = [width, 2 * width, 4 * width, 8 * width], [], width
        for i, c_out in enumerate(widths):
            blocks += [BasicBlock(c_in, c_out, 1 if i == 0 else 2, norm, activation)]
            blocks += [BasicBlock(c_out, c_out, 1, norm, activation)]
            c_in = c_out
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        x = self.stages(x).mean(dim=(2, 3))
        return self.head(x).float()


def make_model(network: str, scale: str, num_classes: int, norm: str, seed: int, activation: str = "relu") -> nn.Module:
    """The network in fp32 on the CPU, channels_last, initialised from `seed` alone (no global generator is touched)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if network == "resnet18":
            model: nn.Module = ResNet18({"small": 16, "full": 64, "wide": 128}[scale], num_classes, norm, activation)
        else:
            model = ResNet9(WIDTHS[scale], DEPTHS[scale], num_classes, norm, activation)
    return model.to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Number of weights, the fixed ones included."""
    return sum(p.numel() for p in model.parameters())


def train_flop(model: nn.Module, side_px: int = 32) -> float:
    """FLOP per image of forward and backward (torch.utils.flop_counter), counted on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(2, 3, side_px, side_px, device="meta")).sum().backward()
    return counter.get_total_flops() / 2
