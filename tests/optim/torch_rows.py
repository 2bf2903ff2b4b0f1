"""Every schedule as torch's documentation has it: the settings, torch's scheduler for them, and the documented loop."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedulers

from fastcifar.config.config import Config

LARGEST_DIFFERENCE = 1e-12
SIZES = [(30, 7), (1, 5), (1, 1), (2, 1), (10, 3), (7, 4), (2.5, 4), (0.5, 6), (3.3, 10), (100, 2)]
"""(epochs, steps per epoch): the usual; one epoch, one step; epochs not divisible by 3; fractions of an epoch."""


def throwaway_optimizer(config: Config) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.schedule.peak, momentum=config.optimizer.momentum)


def documented_loop(optimizer: SGD, scheduler: Any, per: str, steps_per_epoch: int, num_steps: int) -> torch.Tensor:
    """Learning rate and momentum that each optimizer step used, with the scheduler stepped after it."""
    rows = []
    group = optimizer.param_groups[0]
    for step in range(num_steps):
        group["params"][0].grad = torch.zeros(1)
        rows.append((float(group["lr"]), float(group["momentum"])))
        optimizer.step()
        if per == "step" or (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    return torch.tensor(rows, dtype=torch.float64)


def whole(epochs: float) -> int:
    """A milestone in whole epochs, as torch counts them; never before the first epoch has ended."""
    return max(1, math.floor(epochs + 1e-9))


def first_cycle(epochs: int) -> int:
    """Of the whole numbers next to a fifth, the one whose last cycle, each twice the one before, is most complete."""
    complete: dict[int, float] = {}
    for first in {max(1, math.ceil(epochs / 5)), max(1, epochs // 5)}:
        left = epochs
        cycle = first
        while left > cycle:
            left, cycle = left - cycle, 2 * cycle
        complete[first] = left / cycle
    return max(sorted(complete, reverse=True), key=complete.__getitem__)


TORCH: dict[str, tuple[dict[str, Any], str, Callable[[SGD, int, float], Any]]] = {
    "multistep": (
        {"schedule": "multistep", "lr_peak": 0.1, "milestones": (0.3, 0.6, 0.9), "gamma": 0.2},
        "epoch",
        lambda o, n, e: torch_schedulers.MultiStepLR(o, [whole(0.3 * e), whole(0.6 * e), whole(0.9 * e)], gamma=0.2),
    ),
    "step": (
        {"schedule": "step", "lr_peak": 0.05, "step_size": 0.3, "gamma": 0.5},
        "epoch",
        lambda o, n, e: torch_schedulers.StepLR(o, whole(0.3 * e), gamma=0.5),
    ),
    "cosine": (
        {"schedule": "cosine", "lr_peak": 0.1, "eta_min": 1e-4},
        "epoch",
        lambda o, n, e: torch_schedulers.CosineAnnealingLR(o, T_max=math.ceil(e), eta_min=1e-4),
    ),
    "restarts": (
        {"schedule": "restarts", "lr_peak": 0.1, "t_0": 0.2, "t_mult": 2, "eta_min": 1e-3},
        "epoch",
        lambda o, n, e: torch_schedulers.CosineAnnealingWarmRestarts(
            o, T_0=first_cycle(math.ceil(e)), T_mult=2, eta_min=1e-3
        ),
    ),
    **{
        f"cyclic {mode}": (
            {"schedule": "cyclic", "lr_peak": 0.1, "base_lr": 0.01, "cycles": 3, "cyclic_mode": mode}
            | ({"cyclic_gamma": 0.99} if mode == "exp_range" else {}),
            "step",
            lambda o, n, e, mode=mode: torch_schedulers.CyclicLR(  # type: ignore[misc]
                o, 0.01, 0.1, step_size_up=max(1.0, n / 6), mode=mode, gamma=0.99, base_momentum=0.85, max_momentum=0.95
            ),
        )
        for mode in ("triangular", "triangular2", "exp_range")
    },
    **{
        f"onecycle {shape}": (
            {"schedule": "onecycle", "lr_peak": 1.5, "pct_start": 0.3, "anneal_strategy": shape},
            "step",
            lambda o, n, e, shape=shape: torch_schedulers.OneCycleLR(  # type: ignore[misc]
                o, 1.5, total_steps=n, pct_start=0.3, anneal_strategy=shape
            ),
        )
        for shape in ("cos", "linear")
    },
    "constant": (
        {"schedule": "constant", "lr_peak": 0.05},
        "epoch",
        lambda o, n, e: torch_schedulers.ConstantLR(o, factor=1.0),
    ),
    "linear": (
        {"schedule": "linear", "lr_peak": 0.1, "end_factor": 0.05},
        "step",
        lambda o, n, e: torch_schedulers.LinearLR(o, 1.0, 0.05, total_iters=max(1, n - 1)),
    ),
}
"""Name: settings, how often torch's scheduler is stepped, and that scheduler; n steps, e epochs."""
