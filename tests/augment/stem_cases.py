"""The stem's kernel on a CPU, by Triton's interpreter, against the executor's images, convolution and activation.

Prints a line of JSON. Run with TRITON_INTERPRET=1, in a process of its own, because Triton reads it when it is
imported. Not in bf16: the interpreter's product of bf16 tiles is wrong.
"""

from __future__ import annotations

import itertools
import json
from unittest import mock

import numpy as np
import torch
from interpreted import lighten
from torch import Tensor, nn

from fastcifar.augment import stem
from fastcifar.augment.executor import Draws, TorchExecutor
from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.augment.plan import draw
from fastcifar.config.config import Augment
from fastcifar.models.layers import ACTIVATIONS, pad_before_pool

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
GUARD = 4096
"""Numbers before and after the output, which must stay as they are."""
BLOCK_M = 8192
"""Outputs of an interpreted program: each program costs milliseconds, however small. One case has the kernel's own."""


def make_images(pad_px: int, dtype: torch.dtype = torch.float32, num: int = 7) -> DeviceImages:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.45), (0.25, 0.2, 0.3)
    return to_device(pixels, np.arange(num), mean, std, pad_px, torch.device("cpu"), dtype)


def make_conv(channels: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(3, channels, 2).to(memory_format=torch.channels_last)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value (at least 1)."""
    assert a.shape == b.shape and a.dtype == b.dtype and b.is_contiguous(memory_format=torch.channels_last)
    off = ((a.double() - b.double()).abs().amax() / a.double().abs().amax().clamp(min=1)).item()
    return off if off == off else float("inf")


def poisoned(draws: Draws, conv: nn.Conv2d, activation: str, border: int) -> tuple[Tensor, int]:
    """The kernel's output, which lies between guards and is filled with NaN before; and how many faults that showed."""
    made, empty = [], torch.empty

    def guarded(*shape: int, **settings: object) -> Tensor:
        like = empty(*shape, **settings)
        made.append(torch.full((like.numel() + 2 * GUARD,), float("nan"), dtype=like.dtype))
        return made[-1][GUARD:-GUARD].as_strided(like.shape, like.stride(), GUARD)

    with mock.patch.object(torch, "empty", guarded):
        y = stem.stem(draws, conv, activation, border)
    (whole,) = made
    return y, int(not whole[:GUARD].isnan().all()) + int(not whole[-GUARD:].isnan().all()) + int(y.isnan().any())


def case(columns: list[list[int]], pad_px: int, channels: int = 24, dtype: str = "fp32", activation: str = "silu",
         cutout_px: int = 0, border: int = 3) -> tuple[float, int]:  # fmt: skip
    draws = Draws(make_images(pad_px, DTYPES[dtype]), torch.tensor(columns, dtype=torch.int32), cutout_px)
    conv = make_conv(channels)
    y, faults = poisoned(draws, conv, activation, border)
    return apart(stem.plain_stem(draws, conv, activation, border), y), faults


def from_a_plan() -> float:
    """Draws of an executor's block, against the same executor's images: a plan of two steps of three images."""
    images, plan = make_images(2), draw(Augment(crop_pad_px=2, cutout_px=8), 3, 0, 7, 0)
    executor, conv = TorchExecutor(images, 8), make_conv(8)
    x = torch.cat([executor.make(plan, 32).batch(step)[0] for step in range(2)])
    with torch.no_grad():
        expected = pad_before_pool(ACTIVATIONS["relu"](conv(x)), 3)
    executor.draws_from_px = 32
    block = executor.make(plan, 32)
    assert isinstance(block.images, Draws)
    return apart(expected, stem.stem(block.images, conv, "relu", 3))


def main() -> None:
    lighten()
    few = [[6, 0, 4, 1, 0, 31], [0, 4, 1, 0, 31, 5], [3, 2, 2, 1, 16, 16]]
    told: dict[str, float] = {}
    told["fp32 blocks of a card"], faults = case(few, 2)
    stem.BLOCK_M = BLOCK_M
    for pad_px in (1, 2):
        places = range(2 * pad_px + 1)
        every = [[n % 7, oy, ox, mirror, 0, 0]
                 for n, (oy, ox, mirror) in enumerate(itertools.product(places, places, (0, 1)))]  # fmt: skip
        told[f"fp32 every crop and mirror, {pad_px}"], found = case(every, pad_px)
        faults += found
    for name, settings in {
        "cutout 12": {"cutout_px": 12}, "cutout 7": {"cutout_px": 7}, "no border": {"border": 0},
        "border 1": {"border": 1}, "border 2": {"border": 2}, "channels 6": {"channels": 6},
        "channels 16": {"channels": 16}, "relu": {"activation": "relu"}, "gelu": {"activation": "gelu"},
    }.items():  # fmt: skip
        told[f"fp32 {name}"], found = case(few, 2, **settings)
        faults += found
    told["fp16"], found = case(few, 2, dtype="fp16", cutout_px=8)
    faults += found
    told |= {"fp32 plan": from_a_plan(), "faults": faults}
    images = {name: make_images(2, dtype) for name, dtype in DTYPES.items()}
    told |= {f"self-check {name}": stem.largest_difference(of, make_conv(24), "silu", 8) for name, of in images.items()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
