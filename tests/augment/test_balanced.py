"""The balanced order: every batch has its share of each class, every image comes once, the rest is as drawn before."""

import numpy as np
import pytest
import torch
from conftest import make_config

from fastcifar.augment.balanced import interleaved
from fastcifar.augment.plan import draw_plan


@pytest.mark.parametrize("window", [10, 20, 50])
def test_each_class_is_equally_often_in_each_window(window):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    order = interleaved(np.random.default_rng(1).permutation(600), labels)
    assert sorted(order) == list(range(600))
    for drawn in labels[order].reshape(-1, window):
        assert np.bincount(drawn, minlength=10).tolist() == [window // 10] * 10


def test_classes_of_other_sizes_have_their_share_of_every_stretch():
    counts = np.array([300, 100, 37, 1, 0, 62])
    labels = np.repeat(np.arange(6), counts)
    order = interleaved(np.random.default_rng(1).permutation(500), labels)
    assert sorted(order) == list(range(500))
    for first in range(0, 500, 50):
        found = np.bincount(labels[order[first : first + 50]], minlength=6)
        assert (np.abs(found - counts / 10) <= 2).all()


def test_many_small_classes_of_one_size_are_spread():
    labels = np.repeat(np.arange(100), [5000] + [50] * 99)
    order = interleaved(np.random.default_rng(1).permutation(len(labels)), labels)
    for drawn in np.split(labels[order][:9900], 99):
        assert abs((drawn == 0).sum() - 100 * 5000 / len(labels)) <= 2


def test_within_a_class_the_order_is_the_random_one():
    labels = np.arange(200) % 4
    drawn = np.random.default_rng(2).permutation(200)
    order = interleaved(drawn, labels)
    for label in range(4):
        assert (order[labels[order] == label] == drawn[labels[drawn] == label]).all()


def test_a_plan_has_balanced_batches_and_the_other_draws_of_a_random_one():
    labels = np.random.default_rng(0).permutation(np.arange(600) % 10)
    plans = {}
    for order in ("random", "balanced"):
        config = make_config(batch_size=50, order=order, mirror="random", seed=3)
        plans[order] = [draw_plan(config, 600, epoch, labels) for epoch in range(2)]
    for plan in plans["balanced"]:
        assert all(np.bincount(labels[step], minlength=10).tolist() == [5] * 10 for step in plan.index.numpy())
        assert plan.index.flatten().sort().values.tolist() == list(range(600))
    first, second = (plan.index for plan in plans["balanced"])
    assert not torch.equal(first, second)
    for a, b in zip(plans["random"], plans["balanced"], strict=True):  # sorted within a step by crop and mirror
        for name in ("offset_y", "offset_x", "mirror"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_run_balances_by_the_labels_of_its_images(make_quick_task):
    task = make_quick_task(order="balanced", val_split=0.125)
    labels, images = task.dataset.y_train, task.executor.images.labels
    index = task.plan(1).index
    assert torch.equal(images[index], torch.from_numpy(labels)[index])
    share = 32 * np.bincount(labels) / len(labels)
    for step in index.numpy():
        assert (np.abs(np.bincount(labels[step], minlength=10) - share) < 2).all()  # part of an image at either end
