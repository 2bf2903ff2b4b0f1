"""The kernels of a pooled convolution on a CPU, by Triton's interpreter, against plain torch: python conv_cases.py

Prints a line of JSON: per case the largest difference of each result. Run with TRITON_INTERPRET=1, in a process of its
own, because Triton reads it when it is imported. `compare` runs on a card, too.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from fused_cases import DTYPES, GUARD, images, norm_of
from interpreted import lighten
from torch import Tensor, nn

from fastcifar.models import fused, pooled_conv
from fastcifar.models.layers import ACTIVATIONS, pad_before_pool
from fastcifar.models.pooled_conv import PLAIN, Kernels

USES = [Kernels(*use) for use in itertools.product((False, True), repeat=2) if any(use)]
BOTH = Kernels(True, True)


def layer(c_in: int, c_out: int, kernel: int, dtype: torch.dtype = torch.float32, ties: bool = False) -> nn.Conv2d:
    """The same filters at each call; with `ties` small whole numbers."""
    torch.manual_seed(2)
    conv = nn.Conv2d(c_in, c_out, kernel, bias=False, dtype=dtype).to(memory_format=torch.channels_last)
    if ties:
        conv.weight.data.mul_(20).round_()
    return conv


def results(
    shape: tuple[int, int, int, int], c_out: int, kernel: int, use: Kernels | None, dtype: str, device: str,
    activation: str, ties: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Output, gradients and statistics; `use` None: plain torch, without any kernel."""
    x = images(shape, DTYPES[dtype], 0)
    x = pad_before_pool(x.round() if ties else x, kernel).contiguous(memory_format=torch.channels_last)
    x = x.to(device).requires_grad_()
    conv = layer(shape[1], c_out, kernel, DTYPES[dtype], ties).to(device)
    norm = norm_of(c_out, nn.BatchNorm2d if use is None else fused.FusedBatchNorm2d).to(device)
    y = pooled_conv.run(conv, norm, x, ACTIVATIONS[activation], use or PLAIN)
    y.backward(images(tuple(y.shape), DTYPES[dtype], 5).to(device))
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == x.dtype
    assert x.grad is not None and conv.weight.grad is not None
    before = (kernel - 1) // 2  # the border's gradient is nobody's
    found = {"y": y.detach(), "d_x": x.grad[:, :, before : before + shape[2], before : before + shape[3]],
             "d_filters": conv.weight.grad, "d_bias": norm.bias.grad, "d_weight": norm.weight.grad}  # fmt: skip
    return found | dict(norm.named_buffers())


def compare(
    shape: tuple[int, int, int, int], c_out: int, kernel: int, use: Kernels, dtype: str = "fp32", device: str = "cpu",
    activation: str = "silu", ties: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Norm of each result's difference from plain torch, by the norm of plain torch's."""
    plain, here = (results(shape, c_out, kernel, u, dtype, device, activation, ties) for u in (None, use))
    found = {}
    for name, expected in plain.items():
        off = (here[name].double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9)
        found[name] = off.item() if torch.isfinite(off) else float("inf")
    return found


def fixed_stem() -> dict[str, float]:
    """An input that needs no gradient gets none, and the filters theirs."""
    x, conv, norm = images((2, 16, 8, 8), torch.float32, 0), layer(16, 24, 3), norm_of(24, fused.FusedBatchNorm2d)
    grads = []
    for needs in (True, False):
        x, conv.weight.grad = x.detach().requires_grad_(needs), None
        pooled_conv.run(conv, norm, x, ACTIVATIONS["silu"], BOTH).sum().backward()
        assert conv.weight.grad is not None
        grads.append(conv.weight.grad)
    return {"has": float(x.grad is not None), "apart": (grads[0] - grads[1]).abs().max().item()}


def nan_stays() -> dict[str, float]:
    """A NaN of the input shows in all outputs: each filter and the statistics see it."""
    x = images((2, 16, 8, 8), torch.float32, 0)
    x[0, 3, 5, 5] = float("nan")
    y = pooled_conv.run(layer(16, 24, 3), norm_of(24, fused.FusedBatchNorm2d), x, ACTIVATIONS["relu"], BOTH)
    return {"missing": float((~y.isnan()).sum())}


def writes_outside() -> dict[str, float]:
    """Every tensor of the kernels lies between guards: guards overwritten, and numbers that are not written.

    Of the input's gradient the border's first row and column may be left.
    """
    made: list[tuple[Tensor, Tensor]] = []

    def guarded(like: Tensor) -> Tensor:
        whole = torch.full((like.numel() + 2 * GUARD,), 77, dtype=like.dtype)
        inner = whole[GUARD:-GUARD].as_strided(like.shape, like.stride(), GUARD)
        made.append((whole, inner))
        return inner

    empty, empty_like = torch.empty, torch.empty_like
    padded = (3, 24, 8, 6)
    with (
        mock.patch.object(torch, "empty", lambda *a, **k: guarded(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: guarded(empty_like(*a, **k))),
    ):
        results((3, 24, 7, 5), 40, 3, BOTH, "fp32", "cpu", "silu", False)
    spoiled = sum(int((whole[:GUARD] != 77).any() or (whole[-GUARD:] != 77).any()) for whole, _ in made)
    left = sum(int(((t[:, :, 1:, 1:] if t.shape == padded else t) == 77).any()) for _, t in made)
    gradients = sum(t.shape == padded for _, t in made)
    return {"tensors": float(len(made)), "spoiled": float(spoiled), "left": float(left), "d_x": float(gradients)}


def equal_bits() -> dict[str, float]:
    """Two runs on the same numbers give the same bits."""
    a, b = (results((2, 16, 9, 9), 24, 3, BOTH, "fp32", "cpu", "silu", False) for _ in range(2))
    return {name: float(not torch.equal(a[name], b[name])) for name in a}


SHAPES: list[tuple[Any, int, int]] = [
    ((2, 16, 8, 6), 40, 2), ((3, 24, 11, 11), 64, 3), ((2, 16, 8, 8), 40, 3), ((2, 64, 7, 7), 96, 3),
    ((3, 72, 5, 9), 24, 3), ((3, 24, 11, 11), 64, 2),
]  # fmt: skip
"""Odd and even sizes, not square, channels that fill no tile, and more than one tile in each direction."""


def short_sums(kernel: str, c_in: int, c_out: int) -> pooled_conv.Tile:
    """Tiles with fewer terms of a weight gradient: as many parts of it from fewer images."""
    tile = TILE_OF(kernel, c_in, c_out)
    return replace(tile, terms=8) if kernel == "weight_gradient_of_pooled" else tile


TILE_OF = pooled_conv.tile_of


def main() -> None:
    lighten()
    told: dict[str, dict[str, float]] = {}
    with mock.patch.object(fused, "fits", lambda x, plus: True):
        for shape, c_out, kernel in SHAPES:
            told[f"fp32 {shape} {c_out} {kernel}"] = compare(shape, c_out, kernel, BOTH)
            pooled_conv.BLOCK_TO_ADD = 4096  # from here on fewer programs, of which each costs milliseconds
        for use in USES[:2]:
            told[f"fp32 {use} alone"] = compare((2, 16, 8, 8), 40, 3, use)
        with mock.patch.multiple(pooled_conv, PROGRAMS=2):  # programs of several tiles
            told["fp32 few programs"] = compare((3, 16, 17, 17), 24, 2, BOTH)
        with mock.patch.object(pooled_conv, "tile_of", short_sums):
            told["fp32 37 parts"] = compare((1, 16, 35, 35), 16, 2, BOTH)  # more than are added up at a time
        told["fp32 ties"] = compare((3, 16, 9, 9), 24, 3, BOTH, ties=True)
        told["fp32 gelu"] = compare((2, 16, 8, 8), 24, 3, BOTH, activation="gelu")
        told |= {"stem": fixed_stem(), "nan": nan_stays(), "guards": writes_outside(), "bits": equal_bits()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
