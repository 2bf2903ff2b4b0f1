"""How filters start that are more than their inputs: the rows of a cosine transform (`--start cosines`)."""

import math

import torch
from torch import nn


def start_as_cosines(layer: nn.Conv2d) -> nn.Conv2d:
    """The filters behind the identity ones start as the rows of a 2-D cosine transform, each on one input channel.

    Filter n reads channel n mod C_in; its frequencies run through all but the constant one (DCT-II, orthonormal).
    Source: entries of the CIFAR-100 speedrun hackathon of October 2026.
    """
    c_out, c_in, height, width = layer.weight.shape
    rows = torch.cos(math.pi / height * (torch.arange(height) + 0.5) * torch.arange(height)[:, None])
    columns = torch.cos(math.pi / width * (torch.arange(width) + 0.5) * torch.arange(width)[:, None])
    waves = (rows[:, None, :, None] * columns[None, :, None, :]).flatten(0, 1)[1:]  # [frequency, H, W]
    with torch.no_grad():
        for n in range(c_in, c_out if len(waves) else c_in):
            wave = waves[(n // c_in - 1) % len(waves)]
            layer.weight[n] = 0
            layer.weight[n, n % c_in] = wave / wave.norm()
    return layer
