"""Downloads the official archive of CIFAR-10 or CIFAR-100; no other module of the package uses the network.

`load` calls this when it finds the data set nowhere on the machine, and then reads the archive like any other source.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import tempfile
import threading
import urllib.request
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

from fastcifar.data.official import OfficialSet

NETWORK_TIMEOUT_S = 10
"""The longest time without an answer before the network counts as absent."""


class DownloadError(Exception):
    """The data set cannot be downloaded."""


def fetch(official: OfficialSet, target: Path, progress: bool) -> None:
    """Downloads the archive to `target` and verifies its MD5; nothing is left there if that fails.

    Raises DownloadError, within seconds if there is no network.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    old_timeout = socket.getdefaulttimeout()
    # torchvision draws a progress bar on stderr, which is of use only on a terminal
    stderr = nullcontext() if progress and is_terminal else redirect_stderr(StringIO())
    try:
        _check_server_answers(official.url)
        if progress and not is_terminal:
            print(f"downloading {official.url} ({official.size}) to {target}", file=sys.stderr, flush=True)
        from torchvision.datasets.utils import download_url  # imports torch, which nothing else here needs

        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        with stderr, tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            download_url(official.url, folder, official.archive, official.archive_md5)
            os.replace(Path(folder) / official.archive, target)
    except (OSError, RuntimeError, ImportError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(str(error) or type(error).__name__) from error
    finally:
        socket.setdefaulttimeout(old_timeout)


def _check_server_answers(url: str) -> None:
    """Raises OSError unless the server answers within NETWORK_TIMEOUT_S."""
    results: list[Exception | None] = []

    def request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
                results.append(None)
        except Exception as error:
            results.append(error)

    # In a thread, because the timeout of urlopen does not cover the name server
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT_S)
    if not results or results[0]:
        raise OSError(str(results[0]) if results else f"no answer in {NETWORK_TIMEOUT_S} s")
