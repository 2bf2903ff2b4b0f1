"""Makes the network of a config, and counts its parameters and arithmetic.

To add a network, write its class in a file beside this one and name it in `make_model`.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastcifar.config import Model
from fastcifar.models import resnet9, resnet18


def make_model(settings: Model, num_classes: int, seed: int) -> nn.Module:
    """The network in fp32 on the CPU, channels_last, initialised from `seed` alone: no global generator is touched.

    `settings.scale` must be resolved (not auto). Input [B, 3, S, S], output logits [B, num_classes] f32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.network == "resnet18":
            width = resnet18.WIDTHS[settings.scale]
            model: nn.Module = resnet18.ResNet18(width, num_classes, settings.norm, settings.activation)
        else:
            widths, depths = resnet9.WIDTHS[settings.scale], resnet9.DEPTHS[settings.scale]
            model = resnet9.ResNet9(widths, depths, num_classes, settings.norm, settings.activation)
    return model.to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Number of weights, the fixed ones included."""
    return sum(p.numel() for p in model.parameters())


def train_flop(model: nn.Module, size_px: int = 32) -> float:
    """FLOP per image of forward and backward (torch.utils.flop_counter), counted on shapes alone.

    A multiply-add counts as 2.
    """
    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(2, 3, size_px, size_px, device="meta")).sum().backward()
    return counter.get_total_flops() / 2
