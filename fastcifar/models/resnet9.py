"""ResNet-9, the default network.

It follows the line ResNet-9 (Page 2018) -> hlb-CIFAR10 (Balsam 2023) -> airbench (Jordan 2024, arXiv:2404.00498): a
fixed whitening convolution made from the data, three stages of convolution, max-pool and a second convolution or a
residual block, identity-initialised filters, norms without a scale of their own.

Shapes: B images, C channels, H W pixels, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.config.shapes import Shape, Stage
from fastcifar.models.conv_choice import conv_pool_norm
from fastcifar.models.cosines import start_as_cosines
from fastcifar.models.fused import border_activation, norm_activation
from fastcifar.models.layers import ACTIVATIONS, conv, make_norm, start_as_identity

LOGIT_SCALE = 4.0


class ConvStage(nn.Module):
    """[B, C_in, H, W] -> [B, C, H/2, W/2]: convolution and pool, then further convolutions or a residual block of them.

    The block's sum is inside its last norm: with filters of fixed norm (Muon) a sum after the norm lost 3 points, and a
    shortcut over a single convolution half a point (LOG.md).
    """

    def __init__(self, c_in: int, stage: Stage, norm: str, activation: str, start: str = "random") -> None:
        super().__init__()
        self.activation, self.stage = ACTIVATIONS[activation], stage
        widths = [stage.inner or stage.width] * (len(stage.then) - 1) + [stage.width]
        first = conv(c_in, stage.width, norm, stage.kernel, padding=0)
        self.conv1, self.norm1 = start_as_identity(first), make_norm(stage.width, norm)
        if start == "cosines":
            start_as_cosines(first)
        second = conv(stage.width, widths[0], norm, stage.then[0])
        self.conv2, self.norm2 = start_as_identity(second), make_norm(widths[0], norm)
        if len(widths) == 2:
            third = conv(widths[0], widths[1], norm, stage.then[1])
            self.conv3, self.norm3 = start_as_identity(third), make_norm(widths[1], norm)

    def forward(self, x: Tensor, border: int = 0) -> Tensor:
        """Input and output have the zero border of `pad_before_pool`, the output for filters of the size `border`.

        Whoever makes a map writes its border, which saves a copy of it.
        """
        x = conv_pool_norm(self.conv1, self.norm1, x, self.activation)
        plus = x if self.stage.residual else None
        if len(self.stage.then) == 1:
            return norm_activation(self.norm2, self.conv2(x), self.activation, plus=plus, border=border)
        x = norm_activation(self.norm2, self.conv2(x), self.activation)
        return norm_activation(self.norm3, self.conv3(x), self.activation, plus=plus, border=border)


class ResNet9(nn.Module):
    """x [B, 3, S, S] -> logits [B, K]; S = 32, or at least 16 in the low-resolution part of a run."""

    def __init__(self, shape: Shape, num_classes: int, norm: str, activation: str, start: str = "random") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem = nn.Conv2d(3, shape.stem, kernel_size=2)
        self.stem.weight.requires_grad = False
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        widths = [shape.stem, *(stage.width for stage in shape.stages)]
        self.stages = nn.Sequential(
            *(
                ConvStage(c_in, stage, norm, activation, start)
                for c_in, stage in zip(widths, shape.stages, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        nn.init.normal_(self.head.weight)
        self.logit_scale = LOGIT_SCALE / widths[-1]
        self.stem_fixed_from_px: int | None = None
        """Image size from which the stem's biases are not trained; None: they always are."""
        self.first_stage_fixed = False
        """Whether no backward pass goes through stem and first stage, as they are not trained any more."""

    def stem_map(self, x: Tensor) -> Tensor:
        """What the stages read, [B, C0, S-1, S-1] with the zero border of `pad_before_pool`."""
        size_px, x = x.shape[-1], self.stem(x)
        if self.stem_fixed_from_px is not None and size_px >= self.stem_fixed_from_px:
            x = x.detach()  # its gradient serves the biases of the stem alone
        stage: Any = self.stages[0]
        return border_activation(stage.norm1, x, self.activation, stage.stage.kernel)

    def features(self, x: Tensor) -> Tensor:
        """x [B, 3, S, S] -> [B, C, H, W], what the classifier takes the largest pixels of; 3x3 for S = 32."""
        stages: list[Any] = list(self.stages)
        borders = [*(stage.stage.kernel for stage in stages[1:]), 0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.first_stage_fixed):
            x = self.stem_map(x) if x.shape[1] == 3 else x  # a map may come ready made (`fastcifar.augment.stem`)
            x = stages[0](x, borders[0])
        for stage, border in zip(stages[1:], borders[1:], strict=True):
            x = stage(x, border)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        # The gradient of amax divides by the number of pixels equal to the maximum. Compiled code computes the pixels
        # again, less rounded: then none is equal, and the gradient is NaN. The gradient of max goes by an index.
        compiled = torch.compiler.is_dynamo_compiling()
        x = x.flatten(2).max(2).values if compiled else x.amax(dim=(2, 3))  # [B, C]
        return self.head(x).float() * self.logit_scale

    @torch.no_grad()
    def whitening_filters(self, images: Tensor, eps: float = 5e-4, dtype: torch.dtype = torch.float64) -> Tensor:
        """Filters [C0, 3, 2, 2] f64 for the stem, from normalised images [N, 3, H, W] f32: the stem's outputs on 2x2
        patches become uncorrelated. The products are made where the images lie, in `dtype`.

        PCA whitening of patches as a first layer: Page 2019 ("How to train your ResNet 8"), both signs: airbench.
        """
        products, count = torch.zeros(12, 12, dtype=dtype, device=images.device), 0
        for part in images.split(20 if images.device.type == "cpu" else 500):  # of a size that fits a CPU's cache
            views = part.to(dtype).unfold(2, 2, 1).unfold(3, 2, 1)  # [n, 3, H-1, W-1, 2, 2]
            patches = views.permute(0, 1, 4, 5, 2, 3).reshape(len(part), 12, -1)
            products += (patches @ patches.mT).sum(0)
            count += patches.shape[0] * patches.shape[2]
        values, vectors = torch.linalg.eigh((products / count).cpu().double())
        strongest = (vectors.T / (values[:, None] + eps).sqrt())[-(len(self.stem.weight) // 2) :]  # eigh sorts upwards
        filters = strongest.view(-1, 3, 2, 2)
        return torch.cat([filters, -filters])
