"""The fused kernels give what plain torch gives, by Triton's interpreter, and compile for cards that are not here."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from triton_scripts import run_script

from fastcifar.config.config import Model
from fastcifar.models import fused
from fastcifar.models.networks import make_model

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="this torch comes without Triton")
LIMITS = {"fp32": 1e-5, "bf16": 2.0**-6, "fp16": 2.0**-9}
"""Two roundings of values of size 1 to 2; the interpreter cuts bf16 off where a card rounds."""
FAR_MEAN = 2e-4
"""fp32 holds 5 digits of a difference of 0.5 at 100, in plain torch too."""


@cache
def interpreted() -> dict[str, dict[str, float]]:
    return run_script("fused_cases.py", TRITON_INTERPRET="1")


@pytest.fixture
def cases() -> dict[str, dict[str, float]]:
    return interpreted()


pytestmark = [pytest.mark.xdist_group("fused kernels")]  # one process runs the cases for all tests


@needs_triton
@pytest.mark.parametrize("dtype", LIMITS)
def test_outputs_gradients_and_statistics_are_those_of_plain_torch(dtype, cases):
    mine = {name: found for name, found in cases.items() if name.startswith(dtype)}
    assert len(mine) >= 3
    for name, found in mine.items():
        limit = FAR_MEAN if "far mean" in name else LIMITS[dtype]
        assert {"y", "d_x0", "d_weight", "d_bias", "running_mean", "running_var", "num_batches_tracked"} <= set(found)
        assert all(off <= limit for off in found.values()), (name, found)
        assert found["num_batches_tracked"] == 0


@needs_triton
def test_the_first_activation_writes_its_border(cases):
    mine = {name: found for name, found in cases.items() if name.startswith("activation")}
    assert len(mine) == 7 and all(found["y"] < 1e-6 and found["d_x"] < 1e-5 for found in mine.values()), mine


@needs_triton
def test_a_network_gets_the_gradients_of_plain_torch(cases):
    assert len(cases["network"]) >= 30 and max(cases["network"].values()) < 1e-4, cases["network"]


@needs_triton
def test_they_write_all_of_their_tensors_and_nothing_else(cases):
    assert cases["guards"]["tensors"] >= 30
    assert cases["guards"]["spoiled"] == cases["guards"]["left"] == 0


@needs_triton
def test_nan_is_not_lost_and_bits_repeat(cases):
    assert cases["nan"] == {"missing": 0}
    assert not any(cases["bits"].values())


@needs_triton
def test_the_check_before_a_run_leaves_room_for_rounding_only(cases):
    for dtype, limit in zip(LIMITS, (fused.TOLERANCE[torch.float32], 0.05, 0.01), strict=True):
        assert cases["self-check"][dtype] < limit / 3, cases["self-check"]


@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
def test_they_compile_for_a_card_that_is_not_here_and_spill_nothing():
    built = run_script("models/fused_builds.py", "90")
    assert len(built) == 13
    for row in built:
        assert row["spilled_bytes"] == 0 and row["registers"] <= 128, row
        assert row["widest_load_bits"] == 128, row


def small_network() -> nn.Module:
    return make_model(Model(scale="small", activation="silu"), 10, 0)


def test_where_they_do_not_run_one_line_says_so_and_plain_torch_goes_on(caplog, monkeypatch):
    """Here: on a CPU, where Triton finds no driver, or is missing."""
    monkeypatch.setattr(fused, "fits", lambda x, plus: True)
    model = small_network()
    assert not fused.fuse(model, "silu", torch.float32)
    (line,) = caplog.messages
    assert line.startswith("the fused kernels cannot be used here (") and line.endswith("going on with plain torch")
    assert not any(isinstance(m, fused.FusedBatchNorm2d) for m in model.modules())
    model.train()(torch.randn(4, 3, 16, 16)).sum().backward()


def test_kernels_that_differ_from_plain_torch_are_not_used(caplog, monkeypatch):
    monkeypatch.setattr(fused, "largest_difference", lambda norm, activation, dtype: 0.2)
    model = small_network()
    assert not fused.fuse(model, "silu", torch.bfloat16)
    assert "differs from plain torch by 0.2" in caplog.text
    assert not any(isinstance(m, fused.FusedBatchNorm2d) for m in model.modules())


def test_fused_norms_keep_keys_and_take_plain_torch_on_a_cpu_and_in_evaluation(monkeypatch):
    def refuse(*arguments: Any, **constants: Any) -> None:
        raise AssertionError("a kernel was launched")

    plain, model = small_network(), small_network()
    monkeypatch.setattr(fused, "largest_difference", lambda norm, activation, dtype: 0.0)
    monkeypatch.setattr(fused, "launch", refuse)
    assert fused.fuse(model, "silu", torch.float32)
    assert list(model.state_dict()) == list(plain.state_dict())
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert torch.equal(model.train()(x), plain.train()(x))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    monkeypatch.setattr(fused, "fits", lambda x, plus: True)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    with pytest.raises(AssertionError, match="a kernel was launched"):
        model.train()(x)


def test_group_norm_stays_plain():
    assert not fused.fuse(make_model(Model(scale="small", norm="gn-ws"), 10, 0), "relu", torch.float32)
