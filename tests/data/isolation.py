"""A fixture that keeps tests away from the user's files and the network, for modules that import it.

It is not in a conftest.py because a second file of that name would hide tests/conftest.py from `from conftest import`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcifar.data import download
from fastcifar.data.official import OfficialSet


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the user's cache, data folder and network: the cache is tmp_path/cache, the working folder tmp_path/cwd."""
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def fail(official: OfficialSet, target: Path, progress: bool) -> None:
        raise download.DownloadError("no network in tests")

    monkeypatch.setattr(download, "fetch", fail)
