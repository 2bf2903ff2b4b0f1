"""A network and an optimizer from Python, and a short training with parts of the caller."""

from typing import Any

import torch
from conftest import QUICK, make_dataset
from torch import nn

import fastcifar


def make_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(8, 10),
    )  # fmt: skip


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.02)


def train(**arguments: Any) -> fastcifar.Result:
    return fastcifar.train(QUICK, data=make_dataset(), **{"epochs": 2, **arguments})


def weights(result: fastcifar.Result) -> dict[str, torch.Tensor]:
    return result.model.network.state_dict()
