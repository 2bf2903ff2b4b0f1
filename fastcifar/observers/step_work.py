"""The least work of a training step by group: arithmetic, and bytes if every tensor is read and written once.

Shapes: B images, S x S pixels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.observers.kernel_groups import DGRAD, FORWARD, LOADER, NORM, UPDATE, WGRAD, Work

VALUE_BYTES = 2  # of an activation in bf16 or fp16
UPDATE_BYTES = 20  # of a weight: itself and its momentum in fp32 read and written, gradient read, 16-bit copy written
NEWTON_SCHULZ_STEPS = 3


def step_work(model: nn.Module, batch: int, size_px: int, muon: bool = True) -> dict[str, Work]:
    """Work of a step of B images, from the shapes of the convolutions in a forward pass of two images on the CPU.

    Between two convolutions norm, pool and activation read the output of the first and write the input of the second;
    backward they read the gradient of the second and the output again, and write the gradient of the first. Muon is
    counted with products of the smaller side of each filter: X X^T, three iterations of three products, and one
    product with X.
    """
    totals: dict[str, list[float]] = {group: [0.0, 0.0] for group in (FORWARD, DGRAD, WGRAD, NORM, UPDATE, LOADER)}

    def add(group: str, flop: float, moved: float) -> None:
        totals[group][0] += flop
        totals[group][1] += moved

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        taken, made = (VALUE_BYTES * batch / 2 * tensor.numel() for tensor in (inputs[0], output))
        flop, moved = weight[0].numel() * output.numel() * batch, taken + made + VALUE_BYTES * weight.numel()
        is_first = inputs[0].shape[1] == 3
        add(FORWARD, flop, moved)
        add(NORM, 0.0, 3 * made + (0.0 if is_first else 2 * taken))
        if inputs[0].requires_grad:
            add(DGRAD, flop, moved)
        if weight.requires_grad:
            rows, columns = sorted((weight.shape[0], weight[0].numel()))
            add(WGRAD, flop, moved)
            if muon:
                add(
                    UPDATE, 4.0 * rows**2 * columns + 6.0 * NEWTON_SCHULZ_STEPS * rows**3, UPDATE_BYTES * weight.numel()
                )

    twin = copy.deepcopy(model).cpu().eval()
    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    twin(torch.zeros(2, 3, size_px, size_px))
    add(LOADER, 0.0, 2 * VALUE_BYTES * batch * 3 * size_px**2)
    return {group: Work(*total) for group, total in totals.items() if total[1]}
