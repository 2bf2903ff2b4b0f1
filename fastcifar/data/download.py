"""Downloads the official archive of CIFAR-10 or CIFAR-100; no other module of the package uses the network.

`load` calls this when it finds the data set nowhere on the machine, and then reads the archive like any other source.
"""

import hashlib
import http.client
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from fastcifar.data.messages import progress_bar
from fastcifar.data.official import OfficialSet
from fastcifar.files import write_atomically

MIB = 1 << 20
NETWORK_TIMEOUT_S = 10
"""The longest time without an answer before the network counts as absent."""


class DownloadError(Exception):
    """The data set cannot be downloaded."""


def fetch(official: OfficialSet, target: Path, progress: bool) -> None:
    """Downloads the archive to `target` and verifies its size, SHA-256 and MD5; nothing is left there if that fails.

    Raises DownloadError, within seconds if there is no network.
    """
    try:
        _check_server_answers(official.url)
        with (
            urllib.request.urlopen(official.url, timeout=NETWORK_TIMEOUT_S) as response,
            progress_bar(f"downloading {official.url} ({official.size}) to {target}", progress) as advance,
        ):
            if urlsplit(response.url).scheme != urlsplit(official.url).scheme:
                raise ValueError(f"the server leads to {response.url}, without the encryption of https")
            write_atomically(target, lambda file: _receive(response, file, official, advance))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(str(error) or type(error).__name__) from error


def _receive(response: IO[bytes], file: IO[bytes], official: OfficialSet, advance: Callable[[int], None]) -> None:
    """Copies the archive. Raises ValueError when it is another one, before more bytes than it has are written."""
    sha256, md5, left = hashlib.sha256(), hashlib.md5(usedforsecurity=False), official.archive_bytes
    while chunk := response.read(min(MIB, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise ValueError(f"the server sends more than the {official.archive_bytes:,} bytes of the archive")
        sha256.update(chunk)
        md5.update(chunk)
        file.write(chunk)
        advance(1)
    if (sha256.hexdigest(), md5.hexdigest()) != (official.archive_sha256, official.archive_md5):
        raise ValueError("what the server sends is not the published archive (its checksums differ)")


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
