"""The kernels of pooled convolutions: results by Triton's interpreter, builds for other machines, the choice."""

from __future__ import annotations

import sys
from functools import cache, partial
from typing import Any

import pytest
import torch
from fused_cases import images
from test_fused import needs_triton, small_network
from torch import Tensor, nn
from triton_scripts import run_script

from fastcifar.models import conv_choice, fused, pooled_conv
from fastcifar.models.conv_choice import PooledConv2d, choices, kernels_of, timings_ms
from fastcifar.models.layers import ACTIVATIONS
from fastcifar.models.pooled_conv import PLAIN, Kernels

MOST_SHARED_BYTES = 227 * 1024
"""Shared memory of a program on compute capability 9.0."""
MS = {PLAIN: 1.0, Kernels(False, True): 1.1, Kernels(True, False): 0.8, Kernels(True, True): 0.9}
"""In the order in which they are timed."""
pytestmark = [pytest.mark.xdist_group("conv kernels")]  # one process runs the cases for all tests


@cache
def interpreted() -> dict[str, dict[str, float]]:
    return run_script("conv_cases.py", TRITON_INTERPRET="1")


@needs_triton
def test_outputs_gradients_and_statistics_are_those_of_plain_torch():
    mine = {name: found for name, found in interpreted().items() if name.startswith("fp32")}
    assert len(mine) == 12
    for name, found in mine.items():
        assert {"y", "d_x", "d_filters", "d_bias", "d_weight", "running_mean", "running_var"} <= set(found)
        assert max(found.values()) < 1e-5, (name, found)


@needs_triton
def test_a_fixed_stem_nan_and_equal_bits():
    assert interpreted()["stem"] == {"has": 0, "apart": 0}
    assert interpreted()["nan"] == {"missing": 0}
    assert not any(interpreted()["bits"].values())


@needs_triton
def test_they_write_all_of_their_tensors_and_nothing_else():
    guards = interpreted()["guards"]
    assert guards["tensors"] >= 10 and guards["d_x"] == 1
    assert guards["spoiled"] == guards["left"] == 0


@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
def test_they_compile_for_a_card_that_is_not_here():
    """Nothing is spilled, products are Hopper's own, and tiles are copied 16 bytes at a time (codes: 8)."""
    built = run_script("models/conv_builds.py", "90")
    assert len(built) == 10
    for row in built:
        assert row["spilled_bytes"] == 0 and row["shared_bytes"] <= MOST_SHARED_BYTES, row
        if row["kernel"] != "add_parts":
            assert row["wgmma"] and not row["mma"], row
            assert row["narrowest_copy_bytes"] == (8 if row["kernel"].startswith("weight") else 16), row


# ---- the choice


def layer(times: dict[Kernels, float] | None = None) -> tuple[PooledConv2d, nn.BatchNorm2d, Tensor]:
    """A layer whose kernels take the given milliseconds, with its norm and input."""
    model = small_network().train()
    fused.use_kernels(model)
    left = list((times or MS).values())
    conv_choice.use_kernels(model, lambda work: left.pop(0))
    stage = model.stages[0]  # type: ignore[index]
    assert isinstance(stage.conv1, PooledConv2d)
    return stage.conv1, stage.norm1, images((2, 16, 8, 8), torch.float32, 0)


@pytest.fixture
def choose(monkeypatch):
    """The choice on a CPU, where the kernels do not run: they are taken to give what plain torch gives."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def plain(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, activation: Any, kernels: Kernels) -> Tensor:
        return activation(nn.BatchNorm2d.forward(norm, nn.functional.max_pool2d(conv(x), 2)))

    monkeypatch.setattr(conv_choice, "run", plain)
    return partial(kernels_of, activation=ACTIVATIONS["silu"])


@pytest.mark.parametrize(("faster", "chosen"), [
    ({}, Kernels(True, False)), ({Kernels(True, True): 0.5}, Kernels(True, True)),
    ({Kernels(True, False): 1.0, Kernels(True, True): 0.98}, PLAIN),
])  # fmt: skip
def test_the_fastest_is_chosen_once_per_size_and_cudnn_where_little_is_gained(choose, faster, chosen):
    conv, norm, x = layer(MS | faster)
    statistics = [t.clone() for t in norm.buffers()]
    assert choose(conv, norm, x) == chosen
    assert choose(conv, norm, x) == chosen  # the timer has nothing left
    assert all(torch.equal(a, b) for a, b in zip(statistics, norm.buffers(), strict=True))
    assert conv.weight.grad is None and choose(conv, norm, x[:1]) == chosen


def test_a_frozen_layer_chooses_too(choose, caplog):
    """--freeze all-but-head leaves it nothing to compute a gradient of."""
    conv, norm, x = layer()
    for weight in (*conv.parameters(), *norm.parameters()):
        weight.requires_grad = False
    assert choose(conv, norm, x) == Kernels(True, False) and not caplog.messages


def test_choices_are_told_by_layer_and_size(choose):
    conv, norm, x = layer()
    choose(conv, norm, x)
    holder = nn.ModuleDict({"conv1": conv})
    assert choices(holder) == {"conv1 8x8": "forward"}
    assert timings_ms(holder) == {"conv1 8x8": {str(kernels): ms for kernels, ms in MS.items()}}
    assert choices(small_network()) == timings_ms(small_network()) == {}


def test_nothing_is_timed_when_deterministic_recorded_or_without_gradients(choose, monkeypatch):
    conv, norm, x = layer({})
    with torch.no_grad():
        assert choose(conv, norm, x) == PLAIN
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose(conv, norm, x) == PLAIN
    assert conv.kernels == {}
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert choose(conv, norm, x) == PLAIN and conv.kernels == {(8, 8): PLAIN} and conv.times_ms == {}


def test_kernels_that_differ_from_cudnn_are_not_used(choose, caplog, monkeypatch):
    plain = conv_choice.run
    monkeypatch.setattr(conv_choice, "run", lambda *a: plain(*a) * (1.2 if a[-1].forward else 1))
    conv, norm, x = layer()
    assert choose(conv, norm, x) == PLAIN
    (line,) = caplog.messages
    assert line.endswith("differs from plain torch by 0.2); going on with plain torch"), line


def test_without_triton_or_a_card_one_line_says_so(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(fused, "fits", lambda x, plus: True)
    conv, norm, x = layer()
    assert kernels_of(conv, norm, x, ACTIVATIONS["silu"]) == PLAIN
    (line,) = caplog.messages
    assert line.startswith("the convolution kernels cannot be used here (")


def test_only_layers_that_fit_use_them(monkeypatch):
    monkeypatch.setattr(fused, "fits", lambda x, plus: True)
    conv, _, x = layer()
    assert not conv_choice.fits(conv, x)  # fp32: tensor cores would round it
    assert conv_choice.fits(conv, x.bfloat16())
    odd = nn.Conv2d(12, 16, 3, bias=False).to(memory_format=torch.channels_last)
    assert not conv_choice.fits(odd, images((2, 12, 8, 8), torch.bfloat16, 0))
    assert not conv_choice.fits(nn.Conv2d(16, 16, 3, bias=False), x.bfloat16())  # not channels_last


def test_tiles_fit_every_named_network():
    for name in ("conv_pool_stats", "input_gradient_of_pooled", "weight_gradient_of_pooled"):
        for c_in, c_out in ((16, 16), (24, 64), (64, 256), (416, 512)):
            tile = pooled_conv.tile_of(name, c_in, c_out)
            assert tile.rows >= 64 and tile.rows * tile.columns <= 128 * 128
