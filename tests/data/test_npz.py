"""Tests of reading .npz files."""

from __future__ import annotations

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import assert_refused, load_path, make_arrays, random_images, write_npz

from fastcifar.data.messages import DataError


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64, np.int64])
def test_npz_with_labels_of_any_integer_type(tmp_path, kind):
    labels = make_arrays()["y_train"].astype(kind)
    flat = load_path(write_npz(tmp_path / "a.npz", y_train=labels))
    column = load_path(write_npz(tmp_path / "b.npz", y_train=labels[:, None]))
    assert flat.classes == ("0", "1", "2") and flat.name == "a" and flat.digest == column.digest
    assert flat.y_train.dtype == np.int64 and np.array_equal(flat.x_test, make_arrays()["x_test"])


def test_npz_with_class_names(tmp_path):
    assert load_path(write_npz(tmp_path / "a.npz", classes=np.array(["x", "y", "z"]))).classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, ("lacks x_test",)),
        ({"x_train": random_images(12).astype(np.float32)}, ("float32 from 0 to 255", "expected uint8, or floats")),
        ({"x_train": random_images(12)[:, :20]}, ("x_train: 32x20 pixels; expected 24 to 96",)),
        ({"x_train": random_images(12).astype(np.int16)}, ("int16 [12, 32, 32, 3]", "expected uint8")),
        ({"x_train": random_images(12)[..., :2]}, ("[12, 32, 32, 2]", "1 or 3 channels")),
        ({"x_train": random_images(11)}, ("11 images and 12 labels",)),
        ({"y_train": np.zeros(12)}, ("y_train is float64",)),
        ({"y_train": np.full(12, np.nan)}, ("y_train is float64",)),
        ({"y_train": np.zeros((12, 2), int)}, ("[12, 2]",)),
        ({"y_train": np.full(12, 2**63, np.uint64)}, ("label", "9223372036854775808")),
        ({"y_train": np.array([-1] + [0] * 11)}, ("label", "-1")),
        ({"y_train": np.array([0, 2] * 6)}, ("'1' has no training images",)),
        ({"y_train": np.full(12, 10**9)}, ("1000000000",)),
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, ("test label is 3", "0..2")),
        ({"classes": np.array(["a", "b"])}, ("train label is 2", "0..1")),
        ({"classes": np.array(["a", "b", "b"])}, ("class names",)),
        ({"classes": np.array(["a", "b", "c\nd"])}, ("class names",)),
        ({"classes": np.arange(3)}, ("classes is int64",)),
        ({"x_train": np.array([{}] * 12, object)}, ("a.npz", "Object arrays")),
        ({"x_test": random_images(0), "y_test": np.zeros(0, int)}, ("test has 0 images",)),
        ({"x_train": random_images(0), "y_train": np.zeros(0, int)}, ("train has 0 images",)),
    ],
)
def test_npz_that_does_not_hold_a_data_set(tmp_path, change, words):
    assert_refused(write_npz(tmp_path / "a.npz", **change), *words)


def test_the_call_that_the_message_names_makes_a_file_that_loads(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_test=None)
    with pytest.raises(DataError, match=r"lacks x_test; save it with np\.savez") as error:
        load_path(path)
    exec(str(error.value).partition("save it with ")[2], {**make_arrays(), "np": np, "path": path})
    assert len(load_path(path).x_test) == len(make_arrays()["x_test"])
