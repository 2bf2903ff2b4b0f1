"""The learning-rate range test: its rates, its smoothing, its rule, and that it stops when the loss diverges."""

import math

import numpy as np
import pytest
import torch

from fastcifar.training import lr_finder
from fastcifar.training.lr_finder import Divergence, growing_rates, range_test, smooth, smooth_both_ways, suggest
from fastcifar.training.step import Step


def test_rates_grow_by_one_factor():
    rates = growing_rates(1e-3, 10, 41)
    assert rates[0] == 1e-3 and rates[-1] == pytest.approx(10)
    assert np.allclose(np.diff(np.log(rates)), math.log(1e4) / 40)


@pytest.mark.parametrize("wrong", [(0, 1, 50), (-1, 1, 50), (1, 1, 50), (1, math.inf, 50), (math.nan, 1, 50),
                                   (0.1, 1, 19), (0.1, 1, 10**6)])  # fmt: skip
def test_a_wrong_range_is_told(wrong):
    with pytest.raises(ValueError, match=r"it must begin above 0|the test takes from"):
        growing_rates(*wrong)


def test_smoothing_keeps_a_constant_and_does_not_lag():
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    assert smooth([3.0, 1.0])[1] == pytest.approx((0.9 * 0.1 * 3 + 0.1 * 1) / (1 - 0.81))
    hill = [-abs(i - 100) for i in range(201)]
    assert np.argmax(smooth_both_ways(hill)) == 100 and np.argmax(smooth(hill)) > 100


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_suggestion_is_half_of_the_rate_with_the_smallest_loss(noise):
    """The loss falls up to a rate of 1 and rises from there on, in equal measure."""
    rates = growing_rates(1e-3, 1e3, 300)
    loss = (1 + np.abs(np.log10(rates)) + noise * np.random.default_rng(0).standard_normal(300)).tolist()
    assert suggest(rates, loss, smooth_both_ways(loss)) == pytest.approx(0.5, rel=0.1)


def test_a_loss_that_only_rises_gives_no_suggestion():
    rates = growing_rates(1e-3, 1, 50)
    rising = [1 + 0.1 * i for i in range(50)]
    assert suggest(rates, rising, rising) is None
    assert suggest(rates[:3], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]) is None
    assert suggest(rates, [1.0, *rising[::-1]], rising[::-1]) is None  # never below its first value


def diverges_at(losses):
    """Index of the loss that stops a test, or None."""
    divergence = Divergence()
    return next((i for i, loss in enumerate(losses) if divergence.after(loss)), None)


def test_divergence_is_a_loss_far_above_its_smallest():
    noise = (2 + 0.1 * np.random.default_rng(0).standard_normal(200)).tolist()
    assert diverges_at(noise) is None
    assert diverges_at([*noise, 100.0]) == 200 and diverges_at([math.nan]) == 0 and diverges_at([2.0, math.inf]) == 1
    assert 200 < diverges_at([*noise, *[2.4] * 10]) < 210 and diverges_at([*noise, *[2.05] * 10]) is None


def test_the_running_mean_of_the_divergence_is_that_of_the_picture():
    losses = (2 + 0.1 * np.random.default_rng(0).standard_normal(50)).tolist()
    divergence = Divergence()
    for count, loss in enumerate(losses, 1):
        divergence.after(loss)
        means = smooth(losses[:count])
        assert divergence.mean == pytest.approx(means[-1]) and divergence.least == pytest.approx(min(means))
        distances = [(losses[i] - means[i - 1]) ** 2 for i in range(1, divergence.least_at)]
        assert divergence.squares_at_least == pytest.approx(sum(distances))


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_steps_are_those_of_the_training_at_the_rates_of_the_test(make_quick_task, monkeypatch, optimizer):
    task = make_quick_task(optimizer=optimizer, head_lr_scale=3.0, epochs=1)
    seen = []
    update = Step.update

    def watched(self, x, y):
        groups = [g for o in self.state.optimizers for g in o.param_groups]
        seen.append((len(y), [(g["lr"] / g["lr_scale"], g["lr_scale"], g["momentum"]) for g in groups]))
        update(self, x, y)

    monkeypatch.setattr(Step, "update", watched)
    rates = growing_rates(1e-5, 1e-3, 20)  # more steps than the run's eight
    tested = range_test(task, rates)
    assert tested.lr == rates and len(tested.loss) == len(tested.smoothed) == 20 and not tested.stopped
    assert [batch for batch, _ in seen] == [32] * 20
    for rate, (_, groups) in zip(rates, seen, strict=True):
        assert all(lr == pytest.approx(rate) for lr, _, _ in groups)
        assert sorted(scale for _, scale, _ in groups) == [1.0, 1.0, 3.0] and groups[0][2] == tested.momentum


def test_two_tests_agree_and_the_first_loss_is_that_of_a_run(make_quick_task):
    task = make_quick_task(epochs=1)
    rates = growing_rates(1e-4, 1e-2, 20)
    first, second = range_test(task, rates), range_test(task, rates)
    assert first == second and 1 < first.loss[0] < 10


def test_it_stops_when_the_loss_diverges(make_quick_task, monkeypatch):
    tested = range_test(make_quick_task(epochs=1), growing_rates(1e-3, 1e12, 60))
    assert tested.stopped and len(tested.lr) < 60 and all(map(math.isfinite, tested.loss))
    monkeypatch.setattr(Step, "update", lambda self, x, y: self.state.loss_sum.add_(torch.nan))
    tested = lr_finder.range_test(make_quick_task(epochs=1), growing_rates(1e-3, 1, 60))
    assert tested.stopped and tested.lr == tested.loss == tested.smoothed == []
