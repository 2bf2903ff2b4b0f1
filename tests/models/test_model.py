"""The networks: layout, arithmetic, initialisation, whitening."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcifar.config.config import Model
from fastcifar.config.shapes import Stage
from fastcifar.models.counts import count_parameters, train_flop
from fastcifar.models.layers import pad_before_pool
from fastcifar.models.networks import make_model
from fastcifar.models.resnet9 import ConvStage, ResNet9

NETWORKS = ("resnet9", "resnet18", "shakeshake26", "shakedrop")
KINDS = [(network, norm) for network in NETWORKS for norm in ("bn", "gn-ws")]


def make_network(
    network: Any = "resnet9", scale: Any = "small", norm: Any = "bn", activation: Any = "relu", num_classes: int = 10,
    seed: int = 0,
) -> nn.Module:  # fmt: skip
    return make_model(Model(network=network, scale=scale, norm=norm, activation=activation), num_classes, seed)


def is_channels_last(t: torch.Tensor) -> bool:
    return t.ndim != 4 or t.is_contiguous(memory_format=torch.channels_last)


def images(num: int, size: int = 32) -> torch.Tensor:
    x = torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def watched_layout(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that give out, or get back as a gradient, something that is not channels_last."""
    wrong: list[str] = []
    seen = set()

    def watch(name: str):
        def forward(module, args, output):
            seen.add(name)
            if not is_channels_last(output):
                wrong.append(f"{name} out {output.stride()}")

        def backward(module, grad_input, grad_output):
            wrong.extend(f"{name} grad {g.stride()}" for g in grad_output if g is not None and not is_channels_last(g))

        return forward, backward

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)):
            forward, backward = watch(name)
            hooks += [module.register_forward_hook(forward), module.register_full_backward_hook(backward)]
    yield wrong
    assert len(seen) == len(hooks) // 2 > 12
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(("network", "norm"), KINDS)
def test_weights_activations_and_gradients_are_channels_last(network, norm):
    model = make_network(network, "small", norm)
    with watched_layout(model) as wrong:
        model(images(2).requires_grad_()).square().sum().backward()
    assert wrong == []
    for name, p in model.named_parameters():
        assert is_channels_last(p), name
        assert p.grad is None or is_channels_last(p.grad), name


@pytest.mark.parametrize("network", NETWORKS)
def test_activations_would_be_channels_last_on_a_card(network):
    """With shapes and strides alone, by the rules of CUDA operators: they differ from those of the CPU."""
    model = make_network(network, "full")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, t in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                fake = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
                setattr(module, name, nn.Parameter(fake) if isinstance(t, nn.Parameter) else fake)
        x = torch.empty(8, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
        with torch.no_grad(), watched_layout(model) as wrong:
            logits = model(x)
        assert logits.device.type == "cuda"
    assert wrong == []


def test_layout_check_notices_nchw():
    model = make_network().to(memory_format=torch.contiguous_format)
    with watched_layout(model) as wrong:
        model(images(2).contiguous().requires_grad_()).sum().backward()
    assert wrong


# Arithmetic


def test_flop_per_image():
    """Of 0.740 GFLOP, 10.4% were for outputs that no pool reads."""
    assert train_flop(make_network("resnet9", "full")) == pytest.approx(0.663e9, rel=2e-3)
    full = train_flop(make_network("resnet9", "full"))
    small = train_flop(make_network())
    assert 0.6e9 < full <= 0.8e9 and small < full / 8
    assert train_flop(make_network("resnet18", "full")) == pytest.approx(3.33e9, rel=2e-3)


def test_a_residual_block_passes_its_input_on():
    """Filters of zero leave the norm of the block's input."""
    stage = ConvStage(4, Stage(width=6, then=(3, 3), residual=True), "bn", "relu").eval()
    nn.init.zeros_(stage.conv3.weight)
    x = torch.randn(2, 4, 8, 8)
    pooled = F.max_pool2d(stage.conv1(pad_before_pool(x, 3)), 2)
    expected = stage.norm1(pooled).relu() / (1 + stage.norm3.eps) ** 0.5
    torch.testing.assert_close(stage(pad_before_pool(x, 3)), expected)


def test_flop_of_the_wide_network():
    assert train_flop(make_network("resnet9", "wide")) == pytest.approx(2.04e9, rel=2e-3)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_activation_is_the_one_asked_for(network, activation):
    """In every place, told by its value at -1."""
    model = make_network(network, "small", activation=activation)
    seen = []
    for module in model.modules():
        if getattr(module, "activation", None):
            module.activation = lambda x, of=module.activation: seen.append(of(torch.tensor([-1.0]))) or of(x)
    model(images(2))
    expected = {"relu": 0.0, "gelu": -0.1587, "silu": -0.2689}[activation]
    assert len(seen) >= 7 and torch.cat(seen).tolist() == pytest.approx([expected] * len(seen), abs=1e-4)


def test_flop_counted_by_hand():
    """2 * H * W * C_out * C_in * k * k per convolution forward; backward as much for the weights and for the input."""
    model = make_network()
    shapes: dict[nn.Module, tuple[int, int]] = {}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: shapes.update({m: tuple(o.shape[2:])}))
    model(images(1))
    products = {m: 2 * h * w * m.weight.numel() for m, (h, w) in shapes.items()}  # type: ignore[operator]
    stem, head = products.pop(model.get_submodule("stem")), 2 * model.get_parameter("head.weight").numel()
    assert train_flop(model) == stem + 3 * (sum(products.values()) + head)  # the stem's filters are not trained


def test_low_resolution_saves_arithmetic():
    model = make_network("resnet9", "full")
    assert train_flop(model, 16) < train_flop(model, 24) < train_flop(model, 32)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_size_from_16_to_32_gives_logits(network):
    model = make_network(network, "small", num_classes=7)
    for size in range(16, 33) if network == "resnet9" else (16, 27):
        logits = model(images(2, size))
        assert logits.shape == (2, 7) and logits.isfinite().all(), size


@pytest.mark.parametrize(("network", "norm"), KINDS)
def test_logits_are_fp32_under_autocast(network, norm):
    with torch.autocast("cpu", torch.bfloat16):
        logits = make_network(network, "small", norm)(images(2))
    assert logits.dtype == torch.float32 and logits.isfinite().all()


# Initialisation


@pytest.mark.parametrize(("network", "norm"), KINDS)
def test_initialisation_depends_on_the_seed_alone(network, norm):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first, before = make_network(network, "small", norm, seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    second, other = make_network(network, "small", norm, seed=5), make_network(network, "small", norm, seed=6)
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.get_parameter("head.weight"), other.get_parameter("head.weight"))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)  # no draw was taken from the global generator


def test_residual_filters_begin_as_the_identity():
    model = make_network().eval()  # in training a CPU may round by more (`fastcifar.models.winograd`)
    for stage in model.stages:  # type: ignore[union-attr]
        for layer in (module for module in stage.modules() if isinstance(module, nn.Conv2d)):
            c = layer.in_channels
            x = images(2)[:, :1].expand(2, c, 32, 32) * torch.arange(1, c + 1).view(1, c, 1, 1)
            passed = min(c, layer.out_channels)
            outputs = layer(x if layer.padding == (1, 1) else F.pad(x, (1, 1, 1, 1)))
            torch.testing.assert_close(outputs[:, :passed], x[:, :passed])


def test_every_trainable_weight_gets_a_gradient():
    for network, norm in KINDS:
        model = make_network(network, "small", norm)
        F.cross_entropy(model(images(8)), torch.arange(8)).backward()
        for name, p in model.named_parameters():
            assert (p.grad is not None and p.grad.abs().sum() > 0) == p.requires_grad, name


def test_parameters_are_counted():
    assert count_parameters(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 10, bias=False))) == 3 * 8 * 9 + 8 + 80


# Whitening


def natural_images(num: int) -> torch.Tensor:
    """Images whose neighbouring pixels and colours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(num, 3, 9, 9, generator=generator)
    mixed = torch.einsum("dc,nchw->ndhw", torch.tensor([[1.0, 0.2, 0.1], [0.7, 0.6, 0.1], [0.5, 0.5, 0.5]]), coarse)
    smooth = F.interpolate(mixed, size=(32, 32), mode="bilinear", align_corners=True)
    return smooth + 0.3 * torch.randn(num, 3, 32, 32, generator=generator)


def whiten(model: ResNet9, x: torch.Tensor, **settings: float) -> None:
    with torch.no_grad():
        model.stem.weight.copy_(model.whitening_filters(x, **settings))


def test_whitened_stem_gives_uncorrelated_outputs_of_unit_variance():
    model, x = make_network("resnet9", "full"), natural_images(200)
    assert isinstance(model, ResNet9)
    before = np.corrcoef(F.unfold(x, 2).transpose(1, 2).reshape(-1, 12).numpy().T)
    assert np.abs(before - np.eye(12)).max() > 0.5  # there is something to whiten
    whiten(model, x, eps=0.0)
    outputs = model.stem(x).detach().permute(0, 2, 3, 1).reshape(-1, 24).double()  # [N * 31 * 31, 24]
    second_moment = (outputs.T @ outputs / len(outputs)).numpy()
    np.testing.assert_allclose(second_moment[:12, :12], np.eye(12), atol=1e-3)
    np.testing.assert_allclose(second_moment[:12, 12:], -np.eye(12), atol=1e-3)  # each direction with both signs


def test_whitening_is_bounded_where_the_images_say_nothing():
    model = make_network()
    assert isinstance(model, ResNet9)
    whiten(model, torch.zeros(10, 3, 32, 32))
    assert model.stem.weight.isfinite().all()
    assert model.stem.weight.abs().max() <= 1 / math.sqrt(5e-4) + 1e-3


def test_whitened_stem_is_not_trained_and_stays_channels_last():
    model = make_network()
    assert isinstance(model, ResNet9)
    whiten(model, natural_images(20))
    assert not model.stem.weight.requires_grad
    assert is_channels_last(model.stem.weight)


# Compiling


def test_compiling_in_place_keeps_plain_keys():
    model = make_network()
    keys = list(model.state_dict())
    model.compile(backend="eager")
    assert list(model.state_dict()) == keys
    assert not any("_orig_mod" in key for key in keys)
    make_network("resnet9", "small", seed=1).load_state_dict(model.state_dict())
