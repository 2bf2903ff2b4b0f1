"""SWAG is what the paper defines, computed here by NumPy from the recorded weights; its samples have its moments."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.optim.averaging import RunningMean
from fastcifar.optim.swag import Swag, draw_sample


def tiny_net() -> nn.Sequential:
    """Four trained filters, a batch norm whose scale is fixed as in resnet9, and a trained bias."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    net[1].weight.requires_grad = False
    return net


def record_walk(model: nn.Module, average: RunningMean, steps: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Moves the trained weights at random and records them; the recorded weights f64."""
    generator, snapshots = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape, generator=generator))
        average.add(model)
        snapshots.append({n: p.detach().numpy().astype(np.float64).copy() for n, p in model.named_parameters()})
    return snapshots


@pytest.mark.parametrize(("steps", "rank"), [(17, 5), (10, 5), (5, 5), (3, 5), (1, 2)])
def test_the_gaussian_is_that_of_the_recorded_weights(steps, rank):
    model = tiny_net()
    swag = Swag(model, rank)
    snapshots = record_walk(model, swag, steps)
    gaussian = swag.gaussian()
    assert {key.partition(".")[2] for key in gaussian} == {"0.weight", "1.bias"}  # not the fixed scale
    for name in ("0.weight", "1.bias"):
        values = np.stack([snapshot[name] for snapshot in snapshots])
        np.testing.assert_allclose(swag.mean[name], values.mean(0), atol=1e-6)
        np.testing.assert_allclose(gaussian[f"variance.{name}"], (values**2).mean(0) - values.mean(0) ** 2, atol=1e-6)
        last = range(max(0, steps - rank), steps)  # each from the mean of the weights up to its own
        deviations = np.stack([values[i] - values[: i + 1].mean(0) for i in last])
        np.testing.assert_allclose(gaussian[f"deviations.{name}"], deviations, atol=1e-6)


def test_a_spread_that_is_small_beside_the_weight_is_kept():
    """1e-4 beside 10: in fp32, the mean of the squares less the square of the mean would be noise."""
    model = nn.Linear(1, 1, bias=False)
    swag = Swag(model, 2)
    values = 10 + 1e-4 * np.random.default_rng(0).standard_normal(300)
    for value in values:
        nn.init.constant_(model.weight, float(value))
        swag.add(model)
    assert swag.variance["weight"].item() == pytest.approx(np.float32(values).astype(float).var(), rel=0.02)


def test_the_mean_is_that_of_swa_bit_for_bit():
    models = tiny_net(), tiny_net()
    averages = RunningMean(models[0]), Swag(models[1], 3)
    for model, average in zip(models, averages, strict=True):
        record_walk(model, average, 20)
    assert all(torch.equal(averages[0].mean[n], averages[1].mean[n]) for n in averages[0].mean)


def test_recording_goes_on_bit_for_bit_from_its_state():
    model = tiny_net()
    whole = Swag(model, 4)
    record_walk(model, whole, 6)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    second, twin = Swag(model, 4), tiny_net()
    second.load(torch.load(file, weights_only=True))
    twin.load_state_dict(model.state_dict())
    record_walk(model, whole, 7, seed=2)
    record_walk(twin, second, 7, seed=2)
    ours, theirs = whole.gaussian(), second.gaussian()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_samples_have_the_mean_and_the_covariance_of_the_gaussian():
    model = tiny_net()
    swag = Swag(model, 3)
    record_walk(model, swag, 12)
    gaussian, names, count = swag.gaussian(), ("0.weight", "1.bias"), 8_000
    draws = np.empty((count, 20))
    for seed in range(count):
        draw_sample(model, swag.mean, gaussian, seed)
        draws[seed] = torch.cat([model.get_parameter(n).detach().flatten() for n in names]).numpy()
    assert torch.equal(model[1].weight, torch.ones(4))  # fixed
    mean, variance = (np.concatenate([part[n].numpy().ravel() for n in names]) for part in (swag.mean, swag.variance))
    d = np.concatenate([gaussian[f"deviations.{n}"].numpy().reshape(3, -1) for n in names], axis=1)
    covariance = np.diag(variance) / 2 + d.T @ d / (2 * (3 - 1))
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(0) - mean) / deviation).max() < 4.5 / count**0.5  # standard errors
    found = np.cov(draws.T) / np.outer(deviation, deviation)
    assert np.abs(found - covariance / np.outer(deviation, deviation)).max() < 6.5 / count**0.5


def test_a_sample_depends_on_the_seed_alone():
    model = tiny_net()
    swag = Swag(model, 3)
    record_walk(model, swag, 5)

    def sample(seed: int) -> torch.Tensor:
        draw_sample(model, swag.mean, swag.gaussian(), seed)
        return model[0].weight.detach().clone()

    first = sample(1)
    torch.manual_seed(5)
    assert not torch.equal(sample(2), first) and torch.equal(sample(1), first)
