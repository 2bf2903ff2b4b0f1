"""Nesterov SGD on all weights that a CUDA graph can hold: the captured step of the recipes without Muon."""

from typing import Any

import torch

from fastcifar.optim.optimizers import CapturableOptimizer


class CapturableSGD(CapturableOptimizer):
    """Nesterov SGD for CUDA graphs.

    torch.optim.SGD asks `momentum != 0` in Python, a wait that no graph can record, and its fused kernel takes momentum
    as a number. The formula is torch's: v = momentum * v + g; weights -= lr * (g + momentum * v).
    """

    def update(self) -> None:
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:  # all frozen
                continue
            updates: Any = [p.grad for p in weights]
            if group["weight_decay"]:
                updates = torch._foreach_add(updates, weights, alpha=group["weight_decay"])
            buffers = [self.state[p]["momentum_buffer"] for p in weights]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            updates = torch._foreach_add(updates, torch._foreach_mul(buffers, group["momentum"]))
            torch._foreach_mul_(updates, group["lr"])
            torch._foreach_sub_(weights, updates)
