"""A network from Python in place of one of ours."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
