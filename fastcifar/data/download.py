"""Downloads the official CIFAR-10 archive; no other module of the package uses the network.

`load` calls this when it finds CIFAR-10 nowhere on the machine, and then reads the archive like any other source.
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

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_NAME, ARCHIVE_MD5 = "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
NETWORK_TIMEOUT_S = 10
"""The longest time without an answer before the network counts as absent."""


class DownloadError(Exception):
    """CIFAR-10 cannot be downloaded."""


def fetch(target: Path, progress: bool) -> None:
    """Downloads the archive to `target` and verifies its MD5; nothing is left there if that fails.

    Raises DownloadError, within seconds if there is no network.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    old_timeout = socket.getdefaulttimeout()
    # torchvision draws a progress bar on stderr, which is of use only on a terminal
    stderr = nullcontext() if progress and is_terminal else redirect_stderr(StringIO())
    try:
        _check_server_answers()
        if progress and not is_terminal:
            print(f"downloading {URL} (170 MB) to {target}", file=sys.stderr, flush=True)
        from torchvision.datasets.utils import download_url  # imports torch, which nothing else here needs

        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        with stderr, tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            download_url(URL, folder, ARCHIVE_NAME, ARCHIVE_MD5)
            os.replace(Path(folder) / ARCHIVE_NAME, target)
    except (OSError, RuntimeError, ImportError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(str(error) or type(error).__name__) from error
    finally:
        socket.setdefaulttimeout(old_timeout)


def _check_server_answers() -> None:
    """Raises OSError unless the server answers within NETWORK_TIMEOUT_S."""
    results: list[Exception | None] = []

    def request() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(URL, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
                results.append(None)
        except Exception as error:
            results.append(error)

    # In a thread, because the timeout of urlopen does not cover the name server
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT_S)
    if not results or results[0]:
        raise OSError(str(results[0]) if results else f"no answer in {NETWORK_TIMEOUT_S} s")
