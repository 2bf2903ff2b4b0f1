"""Tests of the synthetic set: the same bytes everywhere, balanced classes, too hard for a linear classifier."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcifar.data import synthetic
from fastcifar.data.dataset import take_subset
from fastcifar.data.load import load

ROOT = Path(__file__).resolve().parents[2]
# SHA-256 of the first 256 training images; when it changes, raise synthetic.VERSION
FIRST_256 = "5140223043f9727774294abe9e59ba5727f9c269405e8325a5de4143a008d75d"


@pytest.fixture(scope="module")
def made():
    """x_train, y_train, x_test, y_test and the class names."""
    return synthetic.make(6_000, 2_000)


def test_same_seed_same_bytes():
    assert hashlib.sha256(synthetic.make(256, 10)[0].tobytes()).hexdigest() == FIRST_256


def test_same_bytes_without_the_cpu_s_wide_instructions():
    """Switches off NumPy's vector code, which stands for the arithmetic of another machine."""
    code = (
        "import hashlib; from fastcifar.data import synthetic;"
        "print(hashlib.sha256(synthetic.make(256, 10)[0].tobytes()).hexdigest())"
    )
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX X86_V3 X86_V4"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == FIRST_256, done.stderr


def test_shapes_types_and_sizes(made):
    x_train, y_train, x_test, y_test, classes = made
    assert x_train.shape == (6_000, 32, 32, 3) and x_test.shape == (2_000, 32, 32, 3)
    assert x_train.dtype == np.uint8 and x_train.flags.c_contiguous and y_train.dtype == y_test.dtype == np.int64
    assert classes == synthetic.CLASSES == tuple(sorted(classes)) and len(classes) == 10
    for sizes in ((0, 1), (1, 0), (50_001, 1), (1, 10_001)):
        with pytest.raises(ValueError, match="50000"):
            synthetic.make(*sizes)


def test_every_ten_images_hold_each_class(made):
    assert all(sorted(ten) == list(range(10)) for ten in made[1].reshape(-1, 10))


def test_smaller_sets_are_the_first_images_of_larger_ones(made):
    x_train, y_train, x_test, y_test, _ = synthetic.make(130, 30)
    assert np.array_equal(x_train, made[0][:130]) and np.array_equal(y_train, made[1][:130])
    assert np.array_equal(x_test, made[2][:30]) and np.array_equal(y_test, made[3][:30])


def test_seeds_and_splits_differ(made):
    assert not np.array_equal(synthetic.make(10, 1, seed=1)[0], made[0][:10])
    assert not np.array_equal(made[0][:10], made[2][:10])
    assert len({image.tobytes() for image in np.concatenate(made[0:3:2])}) == 8_000


def test_a_linear_classifier_stays_below_half(made):
    """Ridge regression on the pixels, mirrored images included."""
    x_train, y_train, x_test, y_test, _ = made

    def features(x):
        return np.c_[x.reshape(len(x), -1).astype(np.float32) / 255 - 0.4, np.ones(len(x), np.float32)]

    a, targets = features(x_train), np.eye(10, dtype=np.float32)[y_train]
    gram, sums = a.T @ a, a.T @ targets
    mirror = np.append(np.arange(x_train[0].size).reshape(32, 32, 3)[:, ::-1].ravel(), x_train[0].size)
    gram, sums = gram + gram[np.ix_(mirror, mirror)], sums + sums[mirror]  # the mirrored images have the same products
    weights = np.linalg.solve(gram + 30 * np.eye(len(gram), dtype=np.float32), sums)
    accuracy = np.mean((features(x_test) @ weights).argmax(1) == y_test)
    assert 0.05 < accuracy < 0.5


def test_colour_does_not_tell_the_class(made):
    """No class is redder, greener or bluer than another by more than sampling explains (in 255 grey levels)."""
    x_train, y_train = made[0], made[1]
    means = np.array([x_train[y_train == label].mean((0, 1, 2)) for label in range(10)])
    assert np.ptp(means - means.mean(1, keepdims=True), axis=0).max() < 6


def test_a_subset_is_drawn_without_the_rest_and_equals_that_of_a_larger_set(tmp_path, made):
    part = load("synthetic", subset=25, cache_dir=str(tmp_path), progress=False)
    assert (part.mean, part.std) == (synthetic.MEAN, synthetic.STD) and part.name == "synthetic"
    larger = load("synthetic", subset=100, cache_dir=str(tmp_path), progress=False)
    assert take_subset(larger, 25).digest == part.digest
    assert list(tmp_path.iterdir()) == []  # fast to draw, so not cached


def test_mean_and_std_are_near_the_stated_ones(made):
    x = made[0].astype(np.float32) / 255
    assert np.allclose(x.mean((0, 1, 2)), synthetic.MEAN, atol=0.01) and np.allclose(
        x.std((0, 1, 2)), synthetic.STD, atol=0.01
    )


@pytest.mark.slow
def test_mean_and_std_are_exactly_the_stated_ones(tmp_path):
    whole = load("synthetic", cache_dir=str(tmp_path), progress=False)
    assert (whole.mean, whole.std) == (synthetic.MEAN, synthetic.STD) and whole.x_train.shape == (50_000, 32, 32, 3)
    assert load("synthetic", cache_dir=str(tmp_path), progress=False).digest == whole.digest
    part = load("synthetic", subset=1_234, cache_dir=str(tmp_path), progress=False)
    assert take_subset(whole, 1_234).digest == part.digest
