"""ResNet-9 in evaluation alone, its batch norms folded into the filters before them.

With the running statistics norm(z) = s z + b, s = weight / sqrt(var + eps) and b = bias - mean s, per channel. So the
filters w become s w, in the dtype of the run, and b remains. A max-pool between the two changes nothing, as s is above
0: the weights of the norms are fixed at 1. In the residual sum x + conv(y), x is multiplied by s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.models.forward import bias_activation
from fastcifar.models.fused import NAMES
from fastcifar.models.layers import pad_before_pool
from fastcifar.models.resnet9 import ResNet9


@torch.no_grad()
def fold(model: ResNet9, dtype: torch.dtype, kernel: bool = False) -> Callable[[Tensor], Tensor]:
    """x [B, 3, S, S] -> logits [B, K] f32, by the weights and statistics that the model has now. It has batch norm.

    Does not wait for the device. dtype: of filters and activations. kernel: pool, bias and activation in one kernel.
    """
    layers = [
        (getattr(stage, f"conv{i}"), getattr(stage, f"norm{i}"))
        for stage in model.stages for i in range(1, 4 if stage.residual else 3)
    ]  # fmt: skip
    weight, bias, mean, var = (
        torch.cat([getattr(norm, name) for _, norm in layers])
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * torch.rsqrt(var + layers[0][1].eps)
    widths = [len(conv.weight) for conv, _ in layers]
    scales, biases = scale.split(widths), (bias - mean * scale).split(widths)
    filters = [(conv.weight * s[:, None, None, None]).to(dtype) for (conv, _), s in zip(layers, scales, strict=True)]
    finish = partial(bias_activation, activation=NAMES[model.activation], kernel=kernel)

    def forward(x: Tensor) -> Tensor:
        x = pad_before_pool(model.activation(model.stem(x)), kernel=3)
        layer = iter(zip(filters, scales, biases, strict=True))
        for number, stage in enumerate(model.stages, start=1):
            before_pool = number < len(model.stages)  # the next convolution is one, and reads a border
            w, _, b = next(layer)
            x = finish(F.conv2d(x, w), b, pool=True)
            w, _, b = next(layer)
            y = finish(F.conv2d(x, w, padding=1), b, border=before_pool and not stage.residual)
            if stage.residual:
                w, s, b = next(layer)
                y = finish(F.conv2d(y, w, padding=1), b, plus=x, scale=s, border=before_pool)
            x = y
        logits: Tensor = model.head(x.amax(dim=(2, 3))).float() * model.logit_scale
        return logits

    return forward
