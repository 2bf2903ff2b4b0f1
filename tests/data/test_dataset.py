"""Tests of subsets, of held-out validation images, and of the mean and standard deviation."""

from __future__ import annotations

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import load_path, make_arrays, write_npz

from fastcifar.data.dataset import Dataset, dataset_digest, hold_out, take_subset
from fastcifar.data.messages import DataError


def make_toy(n_train: int = 100, n_test: int = 30, k: int = 5) -> Dataset:
    arrays = make_arrays(n_train, n_test, k)
    return Dataset("toy", tuple("abcde"[:k]), *arrays.values(), mean=(0.5,) * 3, std=(0.2,) * 3, digest="whole")


def test_subset_takes_equal_parts_and_a_fifth_for_testing():
    part = take_subset(make_toy(), 52)
    assert list(np.bincount(part.y_train)) == [11, 11, 10, 10, 10] and list(np.bincount(part.y_test)) == [2] * 5
    assert np.array_equal(part.x_train[:50], make_toy().x_train[:50])  # the first of each class, in their order
    assert part.mean == (0.5,) * 3 and part.std == (0.2,) * 3 and part.digest != "whole"
    assert take_subset(make_toy(), 52).digest == part.digest
    assert list(np.bincount(take_subset(make_toy(), 5).y_test)) == [1] * 5


def test_impossible_subsets_are_refused():
    with pytest.raises(DataError, match="at least 5"):
        take_subset(make_toy(), 4)
    with pytest.raises(DataError, match="has 100"):
        take_subset(make_toy(), 101)


def test_hold_out_is_stratified_disjoint_and_seeded():
    whole = make_toy()
    rest, x_val, y_val = hold_out(whole, 0.2, seed=3)
    assert list(np.bincount(y_val)) == [4] * 5 and list(np.bincount(rest.y_train)) == [16] * 5
    seen = {image.tobytes() for image in rest.x_train} | {image.tobytes() for image in x_val}
    assert len(seen) == 100 and rest.mean == whole.mean and len(rest.x_test) == 30
    assert np.array_equal(x_val, hold_out(whole, 0.2, seed=3)[1])
    assert not np.array_equal(x_val, hold_out(whole, 0.2, seed=4)[1])
    with pytest.raises(DataError, match="val_split"):
        hold_out(whole, 0.01, seed=0)


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_test", "y_test", "classes"])
def test_the_digest_knows_every_array_and_the_names(part):
    arrays, names = make_arrays(100, 30, 5), tuple("abcde")
    before = dataset_digest(names, tuple(arrays.values()))
    assert before == dataset_digest(names, tuple(array.copy() for array in arrays.values()))
    if part == "classes":
        names = tuple("abcdf")
    else:
        arrays[part].flat[-1] ^= 1
    assert dataset_digest(names, tuple(arrays.values())) != before


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    dataset = load_path(write_npz(tmp_path / "a.npz"))
    x = dataset.x_train.astype(np.float64) / 255
    assert np.allclose(dataset.mean, x.mean((0, 1, 2)), atol=1e-12, rtol=0)
    assert np.allclose(dataset.std, x.std((0, 1, 2)), atol=1e-12, rtol=0)
    grey = load_path(write_npz(tmp_path / "b.npz", x_train=np.full((12, 32, 32, 3), 7, np.uint8)))
    assert grey.std == (1.0, 1.0, 1.0)  # dividing by it stays finite
