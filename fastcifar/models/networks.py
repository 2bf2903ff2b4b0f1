"""Makes the network of a config, and counts its parameters and arithmetic.

To add a network, write its class in a file beside this one and name it in `make_model`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.config.config import Model
from fastcifar.models import resnet9, resnet18, shake

Network = nn.Module | Callable[[], nn.Module]
"""A network from Python, or what makes one."""


def own_network(network: Network, seed: int = 0) -> nn.Module:
    """A copy of a network from Python, or what the function makes under `seed`: fp32, on the CPU, channels_last.

    No global generator is touched. TypeError when it is no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = copy.deepcopy(network) if isinstance(network, nn.Module) else network()
    if not isinstance(model, nn.Module):
        raise TypeError(f"network made a {type(model).__name__}; expected a torch.nn.Module")
    return model.cpu().float().train().to(memory_format=torch.channels_last)


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


def count_parameters(model: nn.Module) -> int:
    """Number of weights, the fixed ones included."""
    return sum(p.numel() for p in model.parameters())


def train_flop(model: nn.Module, size_px: int = 32) -> float:
    """FLOP per image of the convolutions and products of forward and backward, counted in a forward pass of two images.

    A multiply-add counts as 2. torch.utils.flop_counter counts the same, but imports torch's compiler: a second.
    """
    total = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight: Any = layer.weight
        passes = 1 + weight.requires_grad + inputs[0].requires_grad  # forward, gradients of weights and of inputs
        total += 2 * passes * weight[0].numel() * output.numel()

    twin = copy.deepcopy(model).cpu().eval()
    for layer in twin.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    twin(torch.zeros(2, 3, size_px, size_px))  # of one image, group norm would refuse a map of one pixel
    return total / 2
