"""Tests of messages on paths that hold no readable data set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import assert_refused, write_npz


def test_missing_path(tmp_path):
    assert_refused(tmp_path / "nowhere", "nowhere", "no such file", "train/<class>")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 300, "a\0b"])
def test_impossible_paths(path):
    assert_refused(Path(path))


def test_a_folder_without_a_data_set(tmp_path):
    assert_refused(tmp_path / "cwd", "holds no data set")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG" * 999, b"PK\x03\x04" + b"x" * 99, b"\0" * 10240])
def test_unknown_kind_of_file(tmp_path, content):
    (tmp_path / "thing").write_bytes(content)
    assert_refused(tmp_path / "thing", "thing")


def test_a_device_is_not_a_data_set():
    assert_refused(Path("/dev/zero"), "holds no data set")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    path.chmod(0)
    assert_refused(path, "permission")
