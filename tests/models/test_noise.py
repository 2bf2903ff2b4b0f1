"""The coefficients of shakeshake26 and shakedrop: uniform, independent, from seed and step alone."""

import copy

import pytest
import torch

from fastcifar.models.noise import StepNoise, mixed, scaled_apart


def draws(seed: int = 0, count: int = 24, batch: int = 100, steps: int = 50) -> torch.Tensor:
    """[steps, count, batch]"""
    noise = StepNoise(seed, count)
    return torch.stack([noise(batch) for _ in range(steps)])


def test_numbers_are_uniform():
    values = draws().flatten()
    assert values.dtype == torch.float32 and values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 100, 0, 1)
    expected = len(values) / 100
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 60 < chi_square < 150  # 99 degrees of freedom: 99 +- 14
    assert values.mean() == pytest.approx(0.5, abs=0.004) and values.var() == pytest.approx(1 / 12, abs=0.001)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["steps", "coefficients", "images"])
def test_steps_coefficients_and_images_are_independent(dim):
    rows = draws().movedim(dim, 0).flatten(1)
    others = torch.corrcoef(rows).fill_diagonal_(0)
    assert others.abs().max() < 5.5 / rows.shape[1] ** 0.5


@pytest.mark.parametrize("seeds", [(0, 1), (5, 5 + 2**32), (7, 2**63 - 1)])
def test_seeds_share_nothing(seeds):
    a, b = (draws(seed).flatten() for seed in seeds)
    assert len(set(a[:100].tolist()) & set(b[:100].tolist())) == 0
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.02


def test_a_step_is_drawn_again_from_its_number():
    noise = StepNoise(3, 4)
    first = [noise(8) for _ in range(5)]
    other = StepNoise(3, 4)
    other.load_state_dict({"step": torch.tensor(3)})
    assert torch.equal(other(8), first[3]) and torch.equal(other(8), first[4]) and other.step == 5
    assert torch.equal(copy.deepcopy(other)(8), noise(8))


def test_global_generators_are_left_alone():
    before = torch.get_rng_state()
    draws(steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_numbers_of_one():
    whole = StepNoise(1, 3)
    parts = [StepNoise(1, 3) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.rank, part.size = rank, 2
    for _ in range(3):
        expected = whole(10)
        for rank, part in enumerate(parts):
            assert torch.equal(part(5), expected[:, rank::2])


def test_mixing_is_the_finalizer_of_murmurhash3_and_stays_in_range():
    """By Python's integers, which have no range."""

    def expected(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    values = [0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]
    assert mixed(torch.tensor(values)).tolist() == [expected(v) for v in values]


def test_compiled_numbers_are_the_same():
    plain, compiled = StepNoise(9, 6), StepNoise(9, 6)
    compiled.compile(backend="eager", fullgraph=True, dynamic=False)
    for _ in range(3):
        assert torch.equal(plain(7), compiled(7))
    assert compiled.step == 3
    torch._dynamo.reset()


def test_each_pass_has_its_own_factor():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    factor, backward_factor = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([2.0, 0.0, 0.25])
    y = scaled_apart(x, factor, backward_factor)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(y, x * factor[:, None, None, None])
    assert x.grad is not None and torch.equal(x.grad, grad * backward_factor[:, None, None, None])


def test_factors_take_the_dtype_of_the_activations():
    x = torch.randn(2, 1, 2, 2, dtype=torch.bfloat16)
    assert scaled_apart(x, torch.rand(2), torch.rand(2)).dtype == torch.bfloat16
