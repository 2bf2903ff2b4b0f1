"""What a network has and costs: its parameters, and the arithmetic of a step."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


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
        passes = 1  # forward, gradients of weights and of inputs
        if torch.is_grad_enabled():
            passes += weight.requires_grad + inputs[0].requires_grad
        total += 2 * passes * weight[0].numel() * output.numel()

    twin = copy.deepcopy(model).cpu().eval()
    for layer in twin.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    twin(torch.zeros(2, 3, size_px, size_px))  # of one image, group norm would refuse a map of one pixel
    return total / 2
