"""Convolutions by fewer products: outputs and gradients beside exact ones, and where they are used."""

import pytest
import torch
import torch.nn.functional as F
from test_model import is_channels_last

from fastcifar.models import winograd
from fastcifar.models.cpu_conv import CpuConv2d
from fastcifar.models.launch import farthest_in_norm

CASES = [(3, 3, 1), (4, 9, 1), (5, 5, 1), (7, 7, 1), (8, 8, 0), (15, 15, 1), (16, 16, 0), (10, 4, 0), (1, 2, 1)]
"""Height, width and padding of an input: one tile and several, whole tiles and parts."""


@pytest.fixture(autouse=True)
def an_avx2_core(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize(("m", "error"), [(2, 6e-7), (3, 2e-6), (4, 4e-6), (5, 8e-6), (6, 1e-5), (7, 4e-5)])
@pytest.mark.parametrize(("height", "width", "padding"), CASES)
def test_outputs_and_gradients_are_those_of_the_convolution(m, error, height, width, padding, monkeypatch):
    """More images than are transformed at a time, with a rest."""
    monkeypatch.setattr(winograd, "tile_of", lambda height, width: m)
    monkeypatch.setattr(winograd, "IMAGES", 2)
    torch.manual_seed(0)
    results = []
    draws = torch.randn(5, 7, height, width).contiguous(memory_format=torch.channels_last)
    filters = torch.randn(6, 7, 3, 3).contiguous(memory_format=torch.channels_last)
    for convolution, dtype in ((winograd.convolution, torch.float32), (F.conv2d, torch.float64)):
        x, weight = draws.to(dtype, copy=True).requires_grad_(), filters.to(dtype, copy=True).requires_grad_()
        y = convolution(x, weight, padding=padding)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append([y, *torch.autograd.grad(y, (x, weight), g.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        assert farthest_in_norm([exact], [ours]) < error
    y, d_x, d_weight = results[0]
    assert is_channels_last(y) and is_channels_last(d_x) and is_channels_last(d_weight)


def test_inputs_without_a_gradient_get_none():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(2, 3, 6, 6)
    y = winograd.convolution(x, weight, 1)
    (ours,) = torch.autograd.grad(y.sum(), weight)
    (exact,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), weight)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
    assert not y.grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def test_a_second_derivative_is_refused():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    y = winograd.convolution(torch.randn(2, 3, 6, 6), weight, 1)
    (d_weight,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_weight.sum().backward()


@pytest.mark.parametrize("m", winograd.POINTS)
def test_transforms_give_a_correlation(m):
    """Of n inputs with 3 filters, m outputs: by the definition."""
    by = winograd.transforms(m)
    inputs, filters = torch.randn(m + 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = by.outputs.double() @ ((by.filters.double() @ filters) * (by.inputs.double() @ inputs))
    exact = torch.stack([inputs[i : i + 3] @ filters for i in range(m)])
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert len(winograd.POINTS[m]) == m + 1


@pytest.mark.parametrize(("size", "m", "products"), [((7, 7), 7, 81), ((6, 6), 6, 64), ((14, 14), 7, 324),
                                                     ((10, 5), 5, 98), ((3, 3), 3, 25), ((2, 2), 2, 16)])  # fmt: skip
def test_the_tile_with_the_fewest_products_is_taken(size, m, products):
    assert winograd.tile_of(*size) == m
    assert winograd.products(m, *size) == products == min(winograd.products(k, *size) for k in winograd.POINTS)


def grad_fn(c_in=64, c_out=64, size=7, kernel=3, dtype=torch.float32):
    """What made the output of a layer."""
    layer = CpuConv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False).to(dtype)
    made_by = layer(torch.randn(2, c_in, size, size, dtype=dtype)).grad_fn
    return made_by and made_by.name()


@pytest.mark.parametrize(("c_in", "c_out", "size"), [(24, 64, 30), (64, 64, 15), (64, 256, 14), (256, 256, 3)])
def test_layers_that_gain_are_trained_so(c_in, c_out, size):
    assert grad_fn(c_in, c_out, size) == "_WinogradBackward"


@pytest.mark.parametrize(
    ("c_in", "c_out", "size"), [(8, 16, 30), (16, 16, 15), (32, 32, 15), (16, 64, 14), (64, 64, 3)]
)
def test_layers_of_few_channels_or_pixels_are_not(c_in, c_out, size):
    assert grad_fn(c_in, c_out, size) == "ConvolutionBackward0"


def test_other_layers_are_left_to_torch(monkeypatch):
    assert grad_fn(kernel=1) == grad_fn(dtype=torch.float64) == "ConvolutionBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert "Winograd" not in grad_fn()
    assert grad_fn() == "_WinogradBackward"
    for kind in ("AVX512", "DEFAULT", "SVE256"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        assert grad_fn() == "ConvolutionBackward0"


def test_a_frozen_layer_is_torchs_own():
    layer = CpuConv2d(64, 64, 3, padding=1, bias=False).requires_grad_(False)
    y = layer(torch.randn(2, 64, 7, 7, requires_grad=True))
    assert y.grad_fn.name() == "ConvolutionBackward0"  # type: ignore[union-attr]


def test_the_network_trains_by_it_and_answers_without(monkeypatch):
    """The logits of a network in training differ by rounding alone, and evaluation does not use it."""
    from fastcifar.config.config import Model
    from fastcifar.models.networks import make_model

    model = make_model(Model(scale="small", activation="silu"), 10, seed=0).to(memory_format=torch.channels_last)
    x, calls = torch.randn(4, 3, 32, 32), []
    convolution = winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda *given: [calls.append(given), convolution(*given)][1])
    by_winograd = model(x)
    assert len(calls) == 2  # 64 to 64 channels at 7 and at 6 pixels; the other layers are too narrow
    with torch.no_grad():
        model(x)  # batch norms of averaged weights are computed so
    assert len(calls) == 4
    model.eval()(x)
    model.train()
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    torch.testing.assert_close(by_winograd, model(x), rtol=1e-3, atol=1e-3)
    assert len(calls) == 4
