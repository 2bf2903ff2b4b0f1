"""NVIDIA's apex: its FusedSGD, where it is installed."""

import importlib
from typing import Any

from torch.optim import Optimizer

APEX_HELP = (
    "optimizer apex-sgd needs NVIDIA's apex, built from source (https://github.com/NVIDIA/apex#installation; the PyPI "
    "package named apex is another program); the default --optimizer sgd is torch's own fused SGD"
)


def make_apex_sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    """FusedSGD of the groups that have weights. ValueError when apex is not installed, or was built without CUDA."""
    try:
        optimizer: Optimizer = apex_sgd()([group for group in groups if group["params"]], lr=lr, momentum=momentum)
    except RuntimeError as e:  # built without CUDA
        raise ValueError(APEX_HELP) from e
    return optimizer


def apex_sgd() -> Any:
    """NVIDIA's FusedSGD. The unrelated PyPI package named apex has no such class."""
    try:
        return importlib.import_module("apex.optimizers").FusedSGD
    except Exception as e:  # a foreign or broken package may raise anything on import
        raise ValueError(APEX_HELP) from e
