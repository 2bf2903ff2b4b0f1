"""The stem's kernel gives what the executor's images give; blocks of draws give the images of blocks of images."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from stem_cases import make_conv, make_images
from triton_scripts import run_script

from fastcifar.augment import stem
from fastcifar.augment.executor import Draws, TorchExecutor
from fastcifar.augment.plan import EpochPlan, draw
from fastcifar.config.config import Augment

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="this torch comes without Triton")
pytestmark = [pytest.mark.xdist_group("stem")]  # one process runs the cases for all tests


@cache
def interpreted() -> dict[str, float]:
    return run_script("augment/stem_cases.py", TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_gives_what_plain_torch_gives():
    """Every crop offset with and without the mirror, cutout, border, several numbers of channels."""
    exact = {name: off for name, off in interpreted().items() if name.startswith("fp32")}
    assert len(exact) >= 12 and max(exact.values()) < 1e-6, exact
    assert 0 < interpreted()["fp16"] < 2.0**-9


@needs_triton
def test_it_writes_all_of_its_output_and_nothing_else():
    assert interpreted()["faults"] == 0


@needs_triton
def test_the_check_before_a_run_leaves_room_for_rounding_only():
    assert interpreted()["self-check fp32"] < stem.TOLERANCE[torch.float32] / 3
    assert interpreted()["self-check fp16"] < stem.TOLERANCE[torch.float16] / 3


def test_where_it_does_not_run_one_line_says_so(caplog):
    """Here: on a CPU, where Triton finds no driver, or is missing."""
    assert not stem.works(make_images(2), make_conv(8), "silu", 0)
    (line,) = caplog.messages
    assert line.startswith("the stem's kernel cannot be used here (") and line.endswith("going on with plain torch")


def test_a_kernel_that_differs_is_not_used(caplog, monkeypatch):
    monkeypatch.setattr(stem, "largest_difference", lambda *arguments: 0.2)
    assert not stem.works(make_images(2), make_conv(8), "silu", 0)
    assert "differs from plain torch by 0.2" in caplog.text


def test_a_draw_that_the_kernel_does_not_know_keeps_it_out(caplog, monkeypatch):
    """The kernel would leave the augmentation out, and the comparison with torch on other draws would not see it."""
    monkeypatch.setattr(stem, "largest_difference", lambda *arguments: 0.0)
    assert tuple(EpochPlan.__dataclass_fields__) == stem.KNOWN_DRAWS
    assert stem.works(make_images(2), make_conv(8), "silu", 0)
    monkeypatch.setattr(EpochPlan, "__dataclass_fields__", {**EpochPlan.__dataclass_fields__, "grey": None})
    assert not stem.works(make_images(2), make_conv(8), "silu", 0)
    assert "does not know the draw grey" in caplog.text


@pytest.mark.parametrize("cutout_px", [0, 8])
def test_a_block_of_draws_gives_the_images_of_a_block_of_images(cutout_px):
    images = make_images(2, num=12)
    plan = draw(Augment(crop_pad_px=2, cutout_px=cutout_px), 4, 0, 12, 0)
    executor = TorchExecutor(images, cutout_px)
    whole, small = executor.make(plan, 32), executor.make(plan, 24)
    executor.draws_from_px = 32
    drawn, still_small = executor.make(plan, 32), executor.make(plan, 24)
    assert isinstance(drawn.images, Draws) and drawn.size_px == whole.size_px == 32 and len(drawn) == 3
    assert not isinstance(still_small.images, Draws)
    assert torch.equal(drawn.content, torch.stack([getattr(plan, n).flatten() for n in plan.__dataclass_fields__], 1))
    for step in range(3):
        for mine, theirs in ((drawn, whole), (still_small, small)):
            (x, y), (expected, labels) = mine.batch(step), theirs.batch(step)
            assert torch.equal(x, expected) and torch.equal(y, labels)
            assert x.is_contiguous(memory_format=torch.channels_last)
