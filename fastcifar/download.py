"""The official CIFAR-10 archive from its author's server; nothing else here touches the network."""

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
ARCHIVE, ARCHIVE_MD5 = "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
NETWORK_TIMEOUT_S = 10  # longest silence of the network before it counts as absent


class NoDownloadError(Exception):
    """CIFAR-10 cannot be had from the network."""


def fetch(target: Path, progress: bool) -> None:
    """The official archive, checked, whole or not at all. Raises NoDownloadError within seconds without a network."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    before = socket.getdefaulttimeout()
    quiet = nullcontext() if progress and terminal else redirect_stderr(StringIO())  # torchvision draws a bar
    try:
        _probe()
        if progress and not terminal:
            print(f"downloading {URL} (170 MB) to {target}", file=sys.stderr, flush=True)
        from torchvision.datasets.utils import download_url

        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
        with quiet, tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as part:
            download_url(URL, part, ARCHIVE, ARCHIVE_MD5)
            os.replace(Path(part) / ARCHIVE, target)
    except (OSError, RuntimeError, ImportError, ValueError, http.client.HTTPException) as error:
        raise NoDownloadError(str(error) or type(error).__name__) from error
    finally:
        socket.setdefaulttimeout(before)


def _probe() -> None:
    """OSError unless the server answers in time. In a thread of its own: a name server's silence knows no timeout."""
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(URL, method="HEAD"), timeout=NETWORK_TIMEOUT_S):
                answer.append(None)
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_TIMEOUT_S)
    if not answer or answer[0]:
        raise OSError(str(answer[0]) if answer else f"no answer in {NETWORK_TIMEOUT_S} s")
