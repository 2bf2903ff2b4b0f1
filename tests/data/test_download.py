"""Tests of the download where there is no network."""

from __future__ import annotations

import time

import pytest

from fastcifar.data import download
from fastcifar.data.official import CIFAR10


def test_missing_network_is_noticed_fast_and_leaves_no_file(tmp_path):
    nowhere = CIFAR10._replace(url="http://127.0.0.1:1/cifar-10-python.tar.gz")
    start = time.monotonic()
    with pytest.raises(download.DownloadError, match="refused"):
        download.fetch(nowhere, tmp_path / "here" / "a.tar.gz", False)
    assert time.monotonic() - start < 5 and not (tmp_path / "here").exists()


def test_a_silent_name_server_counts_as_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "NETWORK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: time.sleep(3))
    with pytest.raises(download.DownloadError, match="no answer"):
        download.fetch(CIFAR10, tmp_path / "a.tar.gz", False)
