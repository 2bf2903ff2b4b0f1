"""The kernels on a CPU, by Triton's interpreter, against plain torch: python fused_cases.py

Prints a line of JSON: per case the largest differences of each result. Run with TRITON_INTERPRET=1, in a process of its
own, because Triton reads it when it is imported. `compare` runs on a card, too.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import torch
from interpreted import lighten
from torch import Tensor, nn

from fastcifar.config.shapes import Shape, Stage
from fastcifar.models import forward, fused
from fastcifar.models.layers import ACTIVATIONS
from fastcifar.models.resnet9 import ResNet9

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("plain", "pool", "plus", "border", "pool border", "plus border")
GUARD = 4096
"""Numbers before and after each tensor that the kernels write, which must stay as they are."""
LARGE = {"REDUCE": (256, 256), "APPLY": (512, 512)}
"""Tiles of an interpreted program: each operation of a tile takes a fraction of a millisecond, however small."""


def norm_of(channels: int, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """The same weights at each call, statistics included."""
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        value.copy_(torch.rand(channels) + 0.5)
    norm.__class__ = kind
    return norm


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int, **changes: float) -> Tensor:
    """Normal, with a mean of its own in each channel: a sum of squares would lose digits of the variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * changes.get("std", 1) + changes.get("mean", 0)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def run(norm: nn.BatchNorm2d, inputs: list[Tensor], g: Tensor, kind: str, activation: str) -> dict[str, Tensor]:
    """Output, gradients and statistics of norm and activation."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    plus = leaves[1] if "plus" in kind else None
    border = 3 if "border" in kind else 0
    y = fused.norm_activation(norm, leaves[0], ACTIVATIONS[activation], "pool" in kind, plus, border)
    y.backward(g)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == inputs[0].dtype
    results = {"y": y.detach(), "d_weight": norm.weight.grad, "d_bias": norm.bias.grad, **dict(norm.named_buffers())}
    return results | {f"d_x{i}": t.grad for i, t in enumerate(leaves)}


def compare(
    shape: tuple[int, int, int, int], kind: str, dtype: str = "fp32", activation: str = "silu", device: str = "cpu",
    **changes: float,
) -> dict[str, float]:  # fmt: skip
    """Largest difference of each result, relative to its largest value (at least 1)."""
    count = 2 if "plus" in kind else 1
    inputs = [images(shape, DTYPES[dtype], i, **changes).to(device) for i in range(count)]
    if changes.get("ties"):
        inputs = [t.round() for t in inputs]
    size = [pixels // 2 if "pool" in kind else pixels for pixels in shape[2:]]
    if "border" in kind:  # of filters of 3x3
        size = [pixels + 2 - pixels % 2 for pixels in size]
    g = images((*shape[:2], *size), DTYPES[dtype], 5).to(device)
    classes = (nn.BatchNorm2d, fused.FusedBatchNorm2d)
    plain, here = (run(norm_of(shape[1], cls).to(device), inputs, g, kind, activation) for cls in classes)
    found = {}
    for name, expected in plain.items():
        off = (here[name].double() - expected.double()).abs().amax() / expected.double().abs().amax().clamp(min=1)
        found[name] = off.item() if torch.isfinite(off) else float("inf")
    return found


def whole_network() -> dict[str, float]:
    """Largest difference of each gradient and statistic of a network after a step, relative to its largest value."""
    found: dict[str, dict[str, Tensor]] = {}
    for kernels in (False, True):
        torch.manual_seed(0)
        stages = (Stage(width=8), Stage(width=16, kernel=2), Stage(width=16, then=(3, 3), residual=True))
        model = ResNet9(Shape(stem=8, stages=stages), 10, "bn", "silu").to(memory_format=torch.channels_last).train()
        if kernels:
            fused.use_kernels(model)
        (model(images((4, 3, 18, 18), torch.float32, 0)) ** 2).sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[str(kernels)] = {**grads, **dict(model.named_buffers())}
    plain, here = found.values()
    return {name: ((here[name] - t).abs().amax() / t.abs().amax()).item() for name, t in plain.items()}


def first_activation(shape: tuple[int, int, int, int], kernel: int, activation: str = "silu") -> dict[str, float]:
    """Largest difference of output and gradient of the activation of a network's first layer, with a border."""
    results = []
    for kind in (nn.BatchNorm2d, fused.FusedBatchNorm2d):
        x = images(shape, torch.float32, 0).requires_grad_()
        y = fused.border_activation(norm_of(8, kind), x, ACTIVATIONS[activation], kernel)
        y.backward(images(tuple(y.shape), torch.float32, 5))
        assert y.is_contiguous(memory_format=torch.channels_last) and x.grad is not None
        results.append((y.detach(), x.grad))
    return {name: (a - b).abs().max().item() for name, a, b in zip(("y", "d_x"), *results, strict=True)}


def nan_stays() -> dict[str, float]:
    """A NaN of the input shows in the output, also through pool and ReLU: a run that diverges must be noticed."""
    missing = 0
    for kind, activation in (("pool", "relu"), ("plain", "relu"), ("plain", "silu")):
        x = images((2, 16, 4, 4), torch.float32, 0)
        x[0, 3, 1, 1] = float("nan")
        y = fused.norm_activation(norm_of(16, fused.FusedBatchNorm2d), x, ACTIVATIONS[activation], kind == "pool")
        missing += int(not y[:, 3].isnan().all()) + int(y[:, :3].isnan().any())
    return {"missing": float(missing)}


def writes_outside() -> dict[str, float]:
    """Every tensor of the kernels lies between guards; how many of these were overwritten."""
    made: list[tuple[Tensor, Tensor, Any]] = []

    def guarded(like: Tensor) -> Tensor:
        whole = torch.full((like.numel() + 2 * GUARD,), 77, dtype=like.dtype)
        inner = whole[GUARD:-GUARD].as_strided(like.shape, like.stride(), GUARD)
        made.append((whole, inner, like.numel()))
        return inner

    empty, empty_like = torch.empty, torch.empty_like
    with (
        mock.patch.object(torch, "empty", lambda *a, **k: guarded(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: guarded(empty_like(*a, **k))),
    ):
        for kind in KINDS:
            compare((3, 24, 7, 5), kind)
        first_activation((3, 24, 7, 6), 3)
    spoiled = sum(int((whole[:GUARD] != 77).any() or (whole[-GUARD:] != 77).any()) for whole, _, _ in made)
    left = sum(int((inner == 77).any()) for _, inner, _ in made)  # each number of a result is written
    return {"tensors": float(len(made)), "spoiled": float(spoiled), "left": float(left)}


def equal_bits() -> dict[str, float]:
    """Two runs on the same numbers give the same bits."""
    x, g = images((4, 24, 9, 9), torch.float32, 0), images((4, 24, 4, 4), torch.float32, 5)
    a, b = (run(norm_of(24, fused.FusedBatchNorm2d), [x], g, "pool", "silu") for _ in range(2))
    return {name: float(not torch.equal(a[name], b[name])) for name in a}


def shapes_and_values() -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = {}
    for activation in ("relu", "gelu"):
        told[f"fp32 pool {activation}"] = compare((3, 24, 9, 7), "pool", activation=activation)
    told["fp32 plus 256"] = compare((2, 256, 7, 7), "plus")
    told["fp32 pool ties"] = compare((3, 24, 9, 7), "pool", ties=1)
    told["bf16 pool ties"] = compare((3, 24, 9, 7), "pool", "bf16", ties=1)
    told["fp32 plain far mean"] = compare((3, 24, 9, 7), "plain", mean=100, std=0.5)
    for kernel in (2, 3):
        for size in ((7, 7), (6, 6), (6, 7)):
            told[f"activation {size} {kernel}"] = first_activation((3, 24, *size), kernel)
    told["activation gelu"] = first_activation((3, 24, 7, 7), 3, "gelu")
    return told | {"network": whole_network()}


def main() -> None:
    lighten()
    told: dict[str, dict[str, float]] = {}
    with mock.patch.object(fused, "fits", lambda x, plus: True):
        for kind in KINDS:
            told[f"fp32 {kind}"] = compare((5, 40, 5, 5), kind)
        with mock.patch.multiple(fused, REDUCE=(16, 80), APPLY=(16, 3)):  # 34 parts, programs of many tiles
            for kind in ("pool border", "plus border"):
                told[f"fp32 {kind} many parts"] = compare((2, 24, 16, 17), kind)
        with mock.patch.multiple(fused, **LARGE):
            for kind in KINDS:
                told[f"fp32 {kind} large"] = compare((3, 24, 15, 15), kind)
                told[f"bf16 {kind}"] = compare((3, 40, 9, 7), kind, "bf16")
            for kind in ("plain", "pool border", "plus border"):
                told[f"fp16 {kind}"] = compare((3, 40, 9, 7), kind, "fp16")
            told |= shapes_and_values()
        told["fp32 pool 31"] = compare((2, 64, 31, 31), "pool")
        told |= {"nan": nan_stays(), "guards": writes_outside(), "bits": equal_bits()}
        with mock.patch.multiple(fused, **LARGE), mock.patch.object(forward, "BLOCK_M", 1024):
            norm = norm_of(24, nn.BatchNorm2d)
            told["self-check"] = {dtype: fused.largest_difference(norm, "silu", DTYPES[dtype]) for dtype in DTYPES}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
