"""ResNet-9, the default network.

It follows the line ResNet-9 (Page 2018) -> hlb-CIFAR10 (Balsam 2023) -> airbench (Jordan 2024, arXiv:2404.00498): a
fixed whitening convolution made from the data, three stages of convolution, max-pool and a second convolution or a
residual block, identity-initialised filters, norms without a scale of their own.

Shapes: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fastcifar.models.fused import norm_activation
from fastcifar.models.layers import ACTIVATIONS, conv, make_norm, pad_before_pool, start_as_identity

WIDTHS = {"full": (24, 64, 256, 256), "small": (16, 16, 64, 64), "wide": (24, 128, 416, 512)}
"""Channels of stem and three stages of resnet9: 0.74 GFLOP per image, 0.05 to end in minutes on 2 CPU cores, or 2.3
for more accuracy from each epoch.

The stem holds the strongest principal directions of 2x2x3 patches, each with both signs: at most 24.
"""
LOGIT_SCALE = 4.0


class Stage(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/2, W/2]: convolution and pool, then a second convolution, or a residual block of two.

    The block's sum is inside its last norm: with filters of fixed norm (Muon) a sum after the norm lost 3 points, and a
    shortcut over a single convolution half a point (LOG.md).
    """

    def __init__(self, c_in: int, c_out: int, residual: bool, norm: str, activation: str) -> None:
        super().__init__()
        self.activation, self.residual = ACTIVATIONS[activation], residual
        self.conv1 = start_as_identity(conv(c_in, c_out, norm, padding=0))
        self.norm1 = make_norm(c_out, norm)
        self.conv2, self.norm2 = start_as_identity(conv(c_out, c_out, norm)), make_norm(c_out, norm)
        if residual:
            self.conv3, self.norm3 = start_as_identity(conv(c_out, c_out, norm)), make_norm(c_out, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(pad_before_pool(x, kernel=3))
        x = norm_activation(self.norm1, x, self.activation, pool=True)
        y = norm_activation(self.norm2, self.conv2(x), self.activation)
        return norm_activation(self.norm3, self.conv3(y), self.activation, plus=x) if self.residual else y


class ResNet9(nn.Module):
    """x [B, 3, S, S] -> logits [B, K]; S = 32, or at least 16 in the low-resolution part of a run."""

    def __init__(self, widths: tuple[int, ...], num_classes: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem = nn.Conv2d(3, widths[0], kernel_size=2)
        self.stem.weight.requires_grad = False
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        pairs = list(pairwise(widths))
        self.stages = nn.Sequential(*(  # a residual block in every stage costs more than it gives (LOG.md)
            Stage(i, o, n == len(pairs), norm, activation) for n, (i, o) in enumerate(pairs, start=1)
        ))  # fmt: skip
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight)
        self.logit_scale = LOGIT_SCALE / widths[-1]
        self.stem_fixed_from_px: int | None = None
        """Image size from which the stem's biases are not trained; None: they always are."""

    def forward(self, x: Tensor) -> Tensor:
        size_px, x = x.shape[-1], self.stem(x)  # [B, C0, S-1, S-1]
        if self.stem_fixed_from_px is not None and size_px >= self.stem_fixed_from_px:
            x = x.detach()  # its gradient serves the biases of the stem alone
        x = self.activation(x)
        x = self.stages(x)  # [B, C, 3, 3] for S = 32
        # The gradient of amax divides by the number of pixels equal to the maximum. Compiled code computes the pixels
        # again, less rounded: then none is equal, and the gradient is NaN. The gradient of max goes by an index.
        compiled = torch.compiler.is_dynamo_compiling()
        x = x.flatten(2).max(2).values if compiled else x.amax(dim=(2, 3))  # [B, C]
        return self.head(x).float() * self.logit_scale

    @torch.no_grad()
    def whitening_filters(self, images: Tensor, eps: float = 5e-4) -> Tensor:
        """Filters [C0, 3, 2, 2] f64 for the stem, from normalised images [N, 3, H, W] f32, computed where they lie:
        the stem's outputs on 2x2 patches become uncorrelated.

        PCA whitening of patches as a first layer: Page 2019 ("How to train your ResNet 8"), both signs: airbench.
        """
        products, count = torch.zeros(12, 12, dtype=torch.float64, device=images.device), 0
        for part in images.split(20 if images.device.type == "cpu" else 500):  # of a size that fits a CPU's cache
            views = part.double().unfold(2, 2, 1).unfold(3, 2, 1)  # [n, 3, H-1, W-1, 2, 2]
            patches = views.permute(0, 1, 4, 5, 2, 3).reshape(len(part), 12, -1)
            products += (patches @ patches.mT).sum(0)
            count += patches.shape[0] * patches.shape[2]
        values, vectors = torch.linalg.eigh((products / count).cpu())
        strongest = (vectors.T / (values[:, None] + eps).sqrt())[-(len(self.stem.weight) // 2) :]  # eigh sorts upwards
        filters = strongest.view(-1, 3, 2, 2)
        return torch.cat([filters, -filters])
