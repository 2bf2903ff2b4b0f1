"""Tests on the 60,000 images of CIFAR-10, if they are next to the project: how they are read and recognised."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from real_images import REAL, needs_real_images
from tiny_sets import CIFAR10_CLASSES

from fastcifar.data import cache
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load

pytestmark = needs_real_images


def test_images_labels_and_normalisation(real: Dataset) -> None:
    assert real.name == "cifar10" and real.classes == CIFAR10_CLASSES
    assert real.x_train.shape == (50_000, 32, 32, 3) and real.x_test.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(real.y_train)) == {5_000} and set(np.bincount(real.y_test)) == {1_000}
    assert np.allclose(real.mean, (0.4914, 0.4822, 0.4465), atol=6e-5, rtol=0)
    assert np.allclose(real.std, (0.2470, 0.2435, 0.2616), atol=6e-5, rtol=0)


def test_the_cache_starts_fast(real: Dataset, real_cache: str) -> None:
    start = time.monotonic()
    assert load(str(REAL), cache_dir=real_cache, progress=False).digest == real.digest
    assert time.monotonic() - start < 5  # it takes 0.5 s; the limit allows for a busy machine


def test_recognised_in_another_container_and_order(real: Dataset, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    train, test = random.permutation(50_000), random.permutation(10_000)
    arrays = {"x_train": real.x_train[train], "y_train": real.y_train[train],
              "x_test": real.x_test[test], "y_test": real.y_test[test]}  # fmt: skip
    np.savez(tmp_path / "set.npz", **arrays)
    cache = str(tmp_path / "cache")
    assert load(str(tmp_path / "set.npz"), cache_dir=cache, progress=False).name == "cifar10"


def test_one_changed_pixel_is_not_cifar10(real: Dataset, tmp_path: Path) -> None:
    arrays = copies_of(real)
    arrays["x_test"][9_999, 31, 31, 2] ^= 1
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = load(str(tmp_path / "set.npz"), cache_dir=str(tmp_path / "cache"), progress=False)
    assert dataset.name == "set"


@pytest.mark.parametrize("change", ["label", "split"])
def test_one_changed_image_is_not_cifar10(real: Dataset, change: str) -> None:
    arrays = copies_of(real)
    if change == "label":
        arrays["y_train"][[0, -1]] = arrays["y_train"][[-1, 0]]
    else:
        arrays["x_train"][0], arrays["x_test"][0] = real.x_test[0], real.x_train[0]
    assert not cache.is_known_by_content(replace(real, digest="another", **arrays))


def copies_of(real: Dataset) -> dict[str, np.ndarray]:
    return {name: getattr(real, name).copy() for name in ("x_train", "y_train", "x_test", "y_test")}


def test_a_cache_of_the_real_images_is_known_without_and_with_a_look_at_each(real: Dataset, monkeypatch) -> None:
    assert real.digest == cache.CIFAR10_IN_FOLDERS and cache.is_known_by_content(real)
    monkeypatch.setattr(cache, "CIFAR10_IN_FOLDERS", "another order")
    assert cache.is_known_by_content(real)
    labels = real.y_test.copy()
    labels[[0, -1]] = labels[[-1, 0]]
    assert not cache.is_known_by_content(replace(real, y_test=labels))
