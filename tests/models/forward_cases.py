"""The kernels of `fastcifar.models.forward` on a CPU, by Triton's interpreter, against plain torch.

Prints a line of JSON: per case the largest difference. Run with TRITON_INTERPRET=1, in a process of its own, because
Triton reads it when it is imported.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import torch
from interpreted import lighten
from torch import Tensor

from fastcifar.config.shapes import Shape, Stage
from fastcifar.models import forward
from fastcifar.models.folded import fold
from fastcifar.models.resnet9 import ResNet9

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GUARD = 4096
"""Numbers before and after each output, which must stay as they are."""
BLOCK_M = 1024
"""Rows of an interpreted program: each costs milliseconds, however small. One shape has the kernel's own."""


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value (at least 1); inf where only one is finite or shapes differ."""
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    return (
        (a.double() - b.double()).nan_to_num().abs().amax() / a.double().nan_to_num().abs().amax().clamp(min=1)
    ).item()


class Poisoned:
    """Outputs lie between guards and are filled with a value that no kernel writes."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []
        self.empty = torch.empty

    def __call__(self, *shape: Any, **settings: Any) -> Tensor:
        like = self.empty(*shape, **settings)
        whole = torch.full((like.numel() + 2 * GUARD,), 77, dtype=like.dtype)
        self.made.append((whole, whole[GUARD:-GUARD].as_strided(like.shape, like.stride(), GUARD)))
        return self.made[-1][1]

    def faults(self) -> int:
        spoiled = sum(int((whole[:GUARD] != 77).any() or (whole[-GUARD:] != 77).any()) for whole, _ in self.made)
        return spoiled + sum(int((inner == 77).any()) for _, inner in self.made)


def bias_activation(shape: tuple[int, ...], dtype: str, activation: str, kind: str, border: int) -> float:
    """kind: "plain", "pool" or "plus"."""
    x, settings = images(shape, DTYPES[dtype], 0), {"pool": kind == "pool", "border": border}
    x[0, 0, 0, 0] = float("nan")
    bias, scale = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(2))
    if kind == "plus":
        settings |= {"plus": images(shape, DTYPES[dtype], 1), "scale": scale}
    a, b = (forward.bias_activation(x, bias, activation, **settings, kernel=kernel) for kernel in (False, True))
    assert b.is_contiguous(memory_format=torch.channels_last)
    return apart(a, b)


SHAPES = {
    "full": Shape(stem=8, stages=(Stage(width=24), Stage(width=40), Stage(width=40, then=(3, 3), residual=True))),
    "other": Shape(stem=8, stages=(
        Stage(width=16, kernel=2, then=(1,), residual=True), Stage(width=24, kernel=1, then=(3, 1), inner=16),
    )),
}  # fmt: skip


def random_network(shape: str = "full") -> ResNet9:
    """In evaluation, its statistics and biases far from those of a fresh one."""
    torch.manual_seed(0)
    model = ResNet9(SHAPES[shape], 10, "bn", "silu").to(memory_format=torch.channels_last).eval()
    for name, value in model.state_dict().items():
        if "norm" in name and value.is_floating_point() and not name.endswith("weight"):
            value.copy_(torch.rand(value.shape) + 0.5)
    return model


def folded_network(size: int, shape: str) -> float:
    """Logits of a network whose folded layers end in the kernels, against the plain network's."""
    model, x = random_network(shape), images((3, 3, size, size), torch.float32, 0)
    with torch.no_grad():
        return apart(model(x), fold(model, torch.float32, kernel=True)(x))


def main() -> None:
    lighten()
    told: dict[str, float] = {}
    poisoned = Poisoned()
    with mock.patch.object(torch, "empty", poisoned):
        for kind in ("plain", "pool", "plus"):
            for border in (0, 1, 2, 3):
                told[f"fp32 {kind} {border}"] = bias_activation((2, 40, 6, 9), "fp32", "silu", kind, border)
        forward.BLOCK_M = BLOCK_M
        for kind in ("plain", "pool", "plus"):
            for border in (0, 1, 2, 3):
                for shape in ((3, 24, 15, 15), (120, 8, 5, 5)):
                    told[f"fp32 {kind} {border} {shape}"] = bias_activation(shape, "fp32", "silu", kind, border)
                for dtype in ("bf16", "fp16"):
                    told[f"{dtype} {kind} {border}"] = bias_activation((3, 24, 9, 8), dtype, "silu", kind, border)
        for activation in ("relu", "gelu"):
            told[f"fp32 {activation}"] = bias_activation((3, 24, 9, 7), "fp32", activation, "pool", 3)
    told |= {"poisoned": float(poisoned.faults()), "outputs": float(len(poisoned.made))}
    told |= {f"network {shape} {size}": folded_network(size, shape) for size in (32, 22, 17) for shape in SHAPES}
    cpu = torch.device("cpu")
    told |= {f"self-check {name}": forward.largest_difference("silu", dtype, cpu) for name, dtype in DTYPES.items()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
