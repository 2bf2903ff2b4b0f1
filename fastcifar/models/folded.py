"""ResNet-9 in evaluation alone, its batch norms folded into the filters before them.

With the running statistics norm(z) = s z + b, s = weight / sqrt(var + eps) and b = bias - mean s, per channel. So the
filters w become s w, in the dtype of the run, and b remains. A max-pool between the two changes nothing, as s is above
0: the weights of the norms are fixed at 1. In the residual sum x + conv(y), x is multiplied by s.
"""

from collections.abc import Callable
from typing import Any

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
    stages: list[Any] = list(model.stages)
    layers = [
        (getattr(stage, f"conv{i}"), getattr(stage, f"norm{i}"))
        for stage in stages for i in range(1, 2 + len(stage.stage.then))
    ]  # fmt: skip
    weight, bias, mean, var = (
        torch.cat([getattr(norm, name) for _, norm in layers])
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight * torch.rsqrt(var + layers[0][1].eps)
    widths = [len(conv.weight) for conv, _ in layers]
    scales, biases = scale.split(widths), (bias - mean * scale).split(widths)
    filters = [(conv.weight * s[:, None, None, None]).to(dtype) for (conv, _), s in zip(layers, scales, strict=True)]
    borders = [stage.conv1.kernel_size[0] for stage in stages]

    def forward(x: Tensor) -> Tensor:
        x = pad_before_pool(model.activation(model.stem(x)), borders[0])
        parts = iter(zip(layers, filters, scales, biases, strict=True))

        def layer(x: Tensor, **settings: Any) -> Tensor:
            (conv, _), w, s, b = next(parts)
            x = F.conv2d(x, w, padding=conv.padding)
            return bias_activation(x, b, NAMES[model.activation], scale=s, kernel=kernel, **settings)

        for stage, border in zip(stages, [*borders[1:], 0], strict=True):
            x = layer(x, pool=True)
            plus = x if stage.stage.residual else None
            for _ in stage.stage.then[1:]:
                x = layer(x)
            x = layer(x, plus=plus, border=border)
        logits: Tensor = model.head(x.amax(dim=(2, 3))).float() * model.logit_scale
        return logits

    return forward
