"""Makes the network of a config.

To add a network, write its class in a file beside this one and name it in `make_model`.
"""

import torch
from torch import nn

from fastcifar.config.config import Model
from fastcifar.models import resnet9, resnet18, shake


def make_model(settings: Model, num_classes: int, seed: int) -> nn.Module:
    """The network in fp32 on the CPU, channels_last, initialised from `seed` alone: no global generator is touched.

    `settings.scale` must be resolved (not auto). Input [B, 3, S, S], output logits [B, num_classes] f32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make(settings, num_classes, seed)
    freeze(model, settings.freeze)
    return model.to(memory_format=torch.channels_last)


def _make(settings: Model, num_classes: int, seed: int) -> nn.Module:
    scale, rest = settings.scale, (num_classes, settings.norm, settings.activation)
    if settings.network == "resnet18":
        return resnet18.ResNet18(resnet18.WIDTHS[scale], *rest)
    if settings.network == "shakeshake26":
        return shake.ShakeShake(shake.SHAKE_SHAKE_WIDTHS[scale], *rest, seed)
    if settings.network == "shakedrop":
        return shake.ShakeDrop(shake.SHAKE_DROP_WIDTHS[scale], *rest, seed)
    return resnet9.ResNet9(settings.layers, *rest, settings.start)


def freeze(model: nn.Module, which: str) -> None:
    """Excludes weights from training: those of the "stem", "all-but-head", or "none" more than the network itself.

    The running statistics of batch norms are no weights: they follow the images.
    """
    for name, p in model.named_parameters():
        if which == "all-but-head" and not name.startswith("head."):
            p.requires_grad = False
        if which == "stem" and name.startswith("stem."):
            p.requires_grad = False
