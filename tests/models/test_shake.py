"""shakeshake26 and shakedrop against the definitions of their papers, and in a run."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcifar.config.config import Model
from fastcifar.models.counts import count_parameters, train_flop
from fastcifar.models.networks import make_model
from fastcifar.models.shake import DropBlock, ShakeBlock, ShakeDrop, ShakeShake, Shortcut, keep_probabilities
from fastcifar.optim.averaging import refresh_batch_norm
from fastcifar.training.processes import JoinedBatchNorm2d, World, join_batch_norms, share_noise

NETWORKS: tuple[Any, ...] = ("shakeshake26", "shakedrop")


def make_network(network: Any, scale: Any = "small", seed: int = 0) -> Any:
    return make_model(Model(network=network, scale=scale), 10, seed)


def images(num: int = 6, channels: int = 3, size: int = 16) -> torch.Tensor:
    x = torch.randn(num, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


class Times(nn.Module):
    """A branch that is known: its input times a trained number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


# Shake-Shake


def known_block() -> ShakeBlock:
    block = ShakeBlock(8, 8, 1, "bn", "relu")
    block.branch1, block.branch2 = Times(2.0), Times(-3.0)  # type: ignore[assignment]
    return block


def test_the_branches_are_mixed_by_alpha_and_their_gradients_by_beta():
    block, x, alpha, beta = known_block(), images(4, 8), torch.rand(4), torch.rand(4)
    x.requires_grad_()
    y = block(x, torch.stack([alpha, beta]))
    a, b = alpha[:, None, None, None], beta[:, None, None, None]
    torch.testing.assert_close(y, x * (1 + 2 * a - 3 * (1 - a)))
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad * (1 + 2 * b - 3 * (1 - b)))
    torch.testing.assert_close(block.branch1.factor.grad, (grad * x * b).sum())  # type: ignore[union-attr]
    torch.testing.assert_close(block.branch2.factor.grad, (grad * x * (1 - b)).sum())  # type: ignore[union-attr]


def test_shake_shake_evaluates_the_expectation():
    block, x = known_block(), images(4, 8)
    torch.testing.assert_close(block(x, None), x * (1 + 0.5 * 2 - 0.5 * 3))
    shares = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
    mean = block(x[:1].expand(2000, -1, -1, -1), shares).mean(0)
    torch.testing.assert_close(mean, block(x, None)[0], rtol=0.1, atol=0.1)


def test_every_block_gets_its_own_alpha_and_beta():
    model, seen = make_network("shakeshake26"), []
    assert isinstance(model, ShakeShake)
    for block in model.blocks:
        block.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    model(images())
    model(images())
    shares = torch.stack(seen)  # [2 * 12, 2, 6]
    assert shares.shape == (24, 2, 6) and len(shares.unique()) == shares.numel()
    seen.clear()
    model.eval()(images())
    assert seen == [None] * 12


def test_the_second_path_of_the_shortcut_is_shifted_by_a_pixel():
    shortcut = Shortcut(4, 8, 2, "bn", "relu").eval()
    x = images(2, 4, 6)
    nn.init.dirac_(shortcut.conv.weight, groups=2)
    y = shortcut(x) * (1 + 1e-5) ** 0.5
    torch.testing.assert_close(y[:, :4], F.relu(x)[:, :, ::2, ::2])
    torch.testing.assert_close(y[:, 4:], F.relu(x)[:, :, 1::2, 1::2])


def test_sizes_are_those_of_the_paper():
    """2.9 and 26.2 million parameters (Gastaldi 2017, table 1 and 3)."""
    assert count_parameters(make_network("shakeshake26", "full")) == pytest.approx(2.9e6, rel=0.02)
    assert count_parameters(make_network("shakeshake26", "wide")) == pytest.approx(26.2e6, rel=0.01)
    model = make_network("shakeshake26", "full")
    assert train_flop(model) == pytest.approx(2.56e9, rel=2e-3)
    assert [len(model.blocks), model.head.in_features] == [12, 128]
    assert model.norm.weight.requires_grad and model.norm.momentum == 0.1


# ShakeDrop


def test_the_keep_probability_falls_linearly_to_a_half():
    expected = [1 - i / 12 * 0.5 for i in range(1, 13)]
    assert keep_probabilities(12) == pytest.approx(expected) and expected[-1] == 0.5
    model = make_network("shakedrop")
    assert isinstance(model, ShakeDrop) and [block.keep for block in model.blocks] == pytest.approx(expected)


def known_drop_block(keep: float = 0.6) -> DropBlock:
    """Its branch multiplies by 2."""
    block = DropBlock(8, 8, 1, keep, "bn", "relu")
    block.norm0, block.norm1, block.norm2 = nn.Identity(), nn.Identity(), Times(2.0)
    block.conv1, block.conv2 = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    block.activation = lambda x: x
    return block


def test_the_branch_is_shaken_by_b_alpha_and_beta():
    block, x = known_drop_block(), images(4, 8)
    x.requires_grad_()
    uniform = torch.tensor([[0.1, 0.59, 0.6, 0.9], [0.0, 0.3, 0.25, 1.0], [0.2, 0.4, 0.7, 0.125]])
    forward = torch.tensor([1.0, 1.0, -0.5, 1.0])  # b = 1, 1, 0, 0; alpha = 2u - 1
    backward = torch.tensor([1.0, 1.0, 0.7, 0.125])
    y = block(x, uniform)
    torch.testing.assert_close(y, x * (1 + 2 * forward[:, None, None, None]))
    grad = torch.randn_like(y)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad * (1 + 2 * backward[:, None, None, None]))


def test_shakedrop_evaluates_the_expectation():
    block, x = known_drop_block(0.6), images(1, 8)
    torch.testing.assert_close(block(x, None), x * (1 + 2 * 0.6))
    uniform = torch.rand(3, 20_000, generator=torch.Generator().manual_seed(0))
    forward, backward = block.factors(uniform)
    assert forward.mean() == pytest.approx(0.6, abs=0.01)  # alpha is 0 on average
    assert backward.mean() == pytest.approx(0.6 + 0.4 * 0.5, abs=0.01)
    assert (forward == 1).float().mean() == pytest.approx(0.6, abs=0.01)
    assert -1 <= forward.min() < -0.99 and 0 <= backward.min() < 0.01


def test_the_pyramid_widens_in_every_block_and_adds_zeros():
    widths = [block.conv2.out_channels for block in make_network("shakedrop", "full").blocks]
    assert widths == list(range(32, 209, 16))
    assert train_flop(make_network("shakedrop", "full")) == pytest.approx(3.76e9, rel=2e-3)
    block = DropBlock(8, 16, 2, 0.5, "bn", "relu").eval()
    nn.init.zeros_(block.conv2.weight)
    y = block(images(2, 8), None)
    torch.testing.assert_close(y[:, :8], F.avg_pool2d(images(2, 8), 2))
    assert not y[:, 8:].any()


# Both


@pytest.mark.parametrize("network", NETWORKS)
def test_training_is_random_and_evaluation_is_not(network):
    model, x = make_network(network), images()
    assert not torch.equal(model(x), model(x)) and model.noise.step == 2
    model.eval()
    assert torch.equal(model(x), model(x)) and model.noise.step == 2
    assert set(make_network(network).state_dict()) >= {"noise.step", "head.weight", "head.bias"}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_compiled_network_draws_the_same(network):
    plain = make_network(network)
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="eager", fullgraph=True, dynamic=False)
    for _ in range(2):
        for model in (plain, compiled):
            model.zero_grad()
            F.cross_entropy(model(images()), torch.arange(6)).backward()
        for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    torch.testing.assert_close(plain.state_dict(), compiled.state_dict())
    assert compiled.noise.step == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("network", NETWORKS)
def test_batch_norms_can_be_refreshed_and_joined(network, tiny_network):
    model = make_network(network)
    assert refresh_batch_norm(model, [images(), images()]) == 2
    assert model.norm.momentum == 0.1
    join_batch_norms(model, World(1, 2))
    share_noise(model, World(1, 2))
    assert type(model.norm) is JoinedBatchNorm2d and (model.noise.rank, model.noise.size) == (1, 2)
