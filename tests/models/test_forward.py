"""Folded batch norms and the kernels of a forward pass give what plain torch gives, and compile for a card."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache

import pytest
import torch
from forward_cases import SHAPES, apart, images, random_network
from triton_scripts import run_script

from fastcifar.config.config import Model
from fastcifar.models.folded import fold
from fastcifar.models.networks import make_model
from fastcifar.models.resnet9 import ResNet9

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="this torch comes without Triton")
LIMITS = {"fp32": 1e-6, "bf16": 2.0**-6, "fp16": 2.0**-9}
"""Two roundings of values of size 1 to 2; the interpreter cuts bf16 off where a card rounds."""

pytestmark = [pytest.mark.xdist_group("forward kernels")]  # one process runs the cases for all tests


@cache
def interpreted() -> dict[str, float]:
    return run_script("models/forward_cases.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("dtype", LIMITS)
def test_the_kernels_give_what_plain_torch_gives(dtype):
    mine = {name: off for name, off in interpreted().items() if name.startswith(dtype)}
    assert len(mine) >= 6 and all(off <= LIMITS[dtype] for off in mine.values()), mine


@needs_triton
def test_they_write_all_of_their_outputs_and_nothing_else():
    assert interpreted()["outputs"] >= 32 and interpreted()["poisoned"] == 0


@needs_triton
def test_the_check_before_a_run_leaves_room_for_rounding_only():
    from fastcifar.models.fused import TOLERANCE

    limits = {"fp32": TOLERANCE[torch.float32], "bf16": TOLERANCE[torch.bfloat16], "fp16": TOLERANCE[torch.float16]}
    for dtype, limit in limits.items():
        assert interpreted()[f"self-check {dtype}"] < limit / 3


@needs_triton
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
def test_they_compile_for_a_card_that_is_not_here_and_spill_nothing():
    built = run_script("models/forward_builds.py", "90")
    assert {row["kernel"] for row in built} == {"bias_activation", "stem"}
    for row in built:
        assert row["spilled_bytes"] == 0 and row["registers"] <= 128, row


# Folded batch norms


def random_images(num: int, size: int) -> torch.Tensor:
    return images((num, 3, size, size), torch.float32, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 22, 17])
def test_a_folded_network_gives_the_logits_of_the_plain_one(size, shape):
    model, x = random_network(shape), random_images(5, size)
    with torch.no_grad():
        plain = model(x)
        assert apart(plain, fold(model, torch.float32)(x)) < 1e-5
    assert plain.std() > 0.01  # else small logits would be near anyhow


@needs_triton
def test_so_it_does_by_the_kernels():
    found = [off for name, off in interpreted().items() if name.startswith("network")]
    assert len(found) == 3 * len(SHAPES) and max(found) < 1e-5


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_a_folded_network_in_bf16_differs_by_rounding_alone(activation):
    """From the plain network in fp32 no further than the plain network in bf16."""
    model, x = make_model(Model(scale="small", activation=activation), 10, seed=0), random_images(64, 32)
    assert isinstance(model, ResNet9)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "conv" in name:  # else most filters are 0 and 1, which bf16 holds exactly
                p += 0.05 * torch.randn(p.shape, generator=generator)
        for _ in range(5):
            model.train()(x)  # statistics that fit
    model.eval()
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            plain, folded = model(x.bfloat16()), fold(model, torch.bfloat16)(x.bfloat16())
    assert folded.dtype == torch.float32
    off, off_folded = ((logits - exact).square().mean().sqrt() for logits in (plain, folded))
    assert 0 < off_folded < 1.5 * off < 0.1 * exact.std(), (off_folded, off, exact.std())


def test_folding_leaves_the_network_alone_and_follows_its_weights():
    model, x = random_network(), random_images(2, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first = fold(model, torch.float32)(x)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.stages[1].norm2.running_mean += 1  # type: ignore[union-attr]
        assert apart(model(x), fold(model, torch.float32)(x)) < 1e-5 < apart(first, model(x))
