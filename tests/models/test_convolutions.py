"""Convolutions of resnet9: what no pool reads, shapes of your own, filters that begin as cosines, weight gradients."""

import copy
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_model import images, is_channels_last, make_network
from torch import nn

from fastcifar.config.config import Model
from fastcifar.config.shapes import Shape, Stage
from fastcifar.models import winograd
from fastcifar.models.cpu_conv import CpuConv2d
from fastcifar.models.layers import conv, pad_before_pool
from fastcifar.models.networks import make_model
from fastcifar.models.resnet9 import ConvStage
from fastcifar.models.standardized import StandardizedConv2d


@pytest.mark.parametrize("size", [32, 31, 28, 27, 24, 22, 21, 17, 15, 7, 5])
@pytest.mark.parametrize("norm", ["bn", "gn-ws"])
def test_outputs_that_no_pool_reads_are_left_out(size, norm):
    """What a convolution with padding on all sides gives: bit for bit on AVX2, but for the input's gradient.

    The tolerance is for CPUs whose kernels sum another shape in another order.
    """
    torch.manual_seed(0)
    lean = ConvStage(5, Stage(width=16), norm, "silu")
    naive = copy.deepcopy(lean)
    naive.conv1.padding = (1, 1)
    results = []
    for stage, border in ((lean, pad_before_pool), (naive, lambda x, kernel: x)):
        x = images(6, size)[:, [0, 1, 2, 0, 1]].contiguous(memory_format=torch.channels_last).requires_grad_()
        outputs = stage.conv1(border(x, 3))
        y = F.silu(stage.norm1(F.max_pool2d(outputs, 2)))
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        assert outputs.shape[-1] == (size // 2 * 2 if stage is lean else size)
        results.append([y.detach(), stage.conv1.weight.grad, *stage.norm1.buffers(), x.grad])
    for ours, plain in zip(*(r[:-1] for r in results), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(results[0][-1], results[1][-1], rtol=1e-4, atol=1e-5)


def test_a_shape_of_your_own_makes_its_network():
    """Channels, kernels and residuals, stage by stage; the same from Python, from JSON and from a file's dicts."""
    shape = Shape(stem=8, stages=(Stage(width=12, then=(1, 1), inner=6, residual=True), Stage(width=10, kernel=2)))
    model = make_model(Model(scale="small", shape=shape), 7, seed=0)
    sizes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4}
    assert sizes == {
        "stem.weight": (8, 3, 2, 2), "stages.0.conv1.weight": (12, 8, 3, 3), "stages.0.conv2.weight": (6, 12, 1, 1),
        "stages.0.conv3.weight": (12, 6, 1, 1), "stages.1.conv1.weight": (10, 12, 2, 2),
        "stages.1.conv2.weight": (10, 10, 3, 3),
    }  # fmt: skip
    assert model(images(2)).shape == (2, 7)
    x = images(2, 16)[:, [0, 1, 2, 0, 1, 2, 0, 1]]
    first: Any = model.get_submodule("stages.0").eval()
    nn.init.zeros_(first.conv3.weight)
    assert first(x).count_nonzero() > 0  # what the residual passes on
    plain = asdict(Model(shape=shape))["shape"]
    assert shape == Shape.of(str(shape)) == Shape.of(plain) == Shape.of(json.loads(json.dumps(plain)))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "7", '{"stem": 24}', '{"stem": 24, "stages": []}', '{"stem": 26, "stages": [{"width": 8}]}',
     '{"stem": 3, "stages": [{"width": 8}]}', '{"stem": 24, "stages": [{"width": 8}, 5]}',
     '{"stem": 24, "stages": [{"width": 100000}]}', '{"stem": 24, "stages": [{"width": 8, "kernel": 5}]}',
     '{"stem": 24, "stages": [{"width": 8, "then": [2]}]}', '{"stem": 24, "stages": [{"width": 8, "then": []}]}',
     '{"stem": 24, "stages": [{"width": 8, "name": 1}]}', "[" * 100_000],
)  # fmt: skip
def test_a_shape_that_is_no_network_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^shape[^\n]+$"):
        Model(shape=text)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 7])
def test_a_border_before_the_pool_gives_an_even_size(kernel, size):
    layer = conv(3, 4, "bn", kernel, padding=0)
    assert layer(pad_before_pool(images(2, size), kernel)).shape[2:] == (6, 6)


def test_filters_may_begin_as_cosines():
    """Each of the further filters reads one channel, sums to 0, is of norm 1 and orthogonal to those of its channel."""
    model: Any = make_model(Model(scale="full", activation="silu", start="cosines"), 10, seed=0)
    first, plain = model.stages[0].conv1, make_network("resnet9", "full").get_parameter("stages.0.conv1.weight")
    torch.testing.assert_close(first.weight[:24], plain[:24])
    further = first.weight[24:].flatten(2)  # [40, 24, 9]
    assert ((further != 0).any(2).sum(1) == 1).all()
    waves = further.sum(1)
    torch.testing.assert_close(waves.sum(1), torch.zeros(40), atol=1e-6, rtol=0)
    torch.testing.assert_close(waves[0::24] @ waves[0::24].T, torch.eye(2), atol=1e-6, rtol=0)
    assert torch.equal(model.stages[2].conv1.weight, nn.init.dirac_(torch.empty(256, 256, 3, 3)))


# Weight gradients by products


@pytest.mark.parametrize(("size", "kernel", "padding"), [(3, 3, 1), (7, 3, 1), (8, 3, 0), (7, 2, 0), (5, 1, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_gradient_by_products_is_that_of_the_convolution(size, kernel, padding, dtype, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    torch.manual_seed(0)
    layer = CpuConv2d(128, 136, kernel, padding=padding, bias=False).to(memory_format=torch.channels_last)
    plain, gradients = nn.Conv2d(128, 136, kernel, padding=padding, bias=False), []
    plain.load_state_dict(layer.state_dict())
    draws = torch.randn(6, 128, size, size).contiguous(memory_format=torch.channels_last)
    for module in (layer, plain):
        x = draws.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = module(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
        gradients.append((y.grad_fn.name(), y.detach(), x.grad, module.weight.grad))
    (ours, *mine), (theirs, *others) = gradients
    assert "Tapwise" in ours and "Tapwise" not in theirs
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for a, b in zip(mine, others, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= tolerance * b.abs().max()
    assert is_channels_last(layer.weight.grad) and is_channels_last(mine[1])


@pytest.mark.parametrize(("channels", "size"), [(64, 7), (128, 15)])
def test_other_convolutions_are_torchs_own(channels, size, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    layer = CpuConv2d(channels, channels, 3, padding=1, bias=False)
    assert "Tapwise" not in layer(torch.randn(2, channels, size, size)).grad_fn.name()
    with torch.no_grad():
        assert CpuConv2d(128, 128, 3, padding=1, bias=False)(torch.randn(2, 128, 7, 7)).grad_fn is None


# Weight standardisation


def test_standardised_convolution_equals_its_formula():
    torch.manual_seed(0)
    layer = StandardizedConv2d(5, 7, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, mean=3.0, std=2.0)
    w = layer.weight.detach().numpy().astype(np.float64)
    mean = w.mean(axis=(1, 2, 3), keepdims=True)
    plain = (w - mean) / np.sqrt(((w - mean) ** 2).sum(axis=(1, 2, 3), keepdims=True))  # sum of squares 1: unit gain
    x = torch.randn(2, 5, 8, 8)
    expected = F.conv2d(x.double(), torch.tensor(plain), padding=1)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_standardised_convolution_does_not_care_for_scale_and_shift_of_its_filters():
    torch.manual_seed(0)
    layer, x = StandardizedConv2d(5, 7, 3), torch.randn(2, 5, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(4).add_(0.5)
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
