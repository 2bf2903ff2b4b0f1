"""Tests of the download: what it takes from a server, and what it does where there is no network."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time

import pytest

from fastcifar.data import download
from fastcifar.data.official import CIFAR10

CONTENT = bytes(range(256)) * 9000
PINS = {"archive_sha256": hashlib.sha256(CONTENT).hexdigest(), "archive_md5": hashlib.md5(CONTENT).hexdigest(),
        "archive_bytes": len(CONTENT)}  # fmt: skip


@pytest.fixture
def serve():
    """Starts a server that answers with some bytes; gives (its address, the requests it gets)."""
    servers = []

    def start(content: bytes = CONTENT):
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.command)
                self.send_response(200)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/a.tar.gz", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_published_archive_is_kept(serve, tmp_path):
    download.fetch(CIFAR10._replace(url=serve()[0], **PINS), tmp_path / "new" / "a.tar.gz", False)
    assert (tmp_path / "new" / "a.tar.gz").read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("pins", "told"),
    [
        ({"archive_sha256": "0" * 64}, "checksums differ"),
        ({"archive_md5": "0" * 32}, "checksums differ"),
        ({"archive_bytes": len(CONTENT) - 1}, "sends more than the 2,303,999 bytes"),
        ({"archive_bytes": 10}, "sends more than the 10 bytes"),
    ],
    ids=range(4),
)
def test_another_archive_is_refused_and_leaves_no_file(serve, tmp_path, pins, told):
    with pytest.raises(download.DownloadError, match=told):
        download.fetch(CIFAR10._replace(url=serve()[0], **(PINS | pins)), tmp_path / "a.tar.gz", False)
    assert not list(tmp_path.iterdir())


def test_a_cut_answer_is_refused(serve, tmp_path):
    with pytest.raises(download.DownloadError, match="checksums differ"):
        download.fetch(CIFAR10._replace(url=serve(CONTENT[:-1])[0], **PINS), tmp_path / "a.tar.gz", False)
    assert not list(tmp_path.iterdir())


def test_https_is_never_given_up(serve, tmp_path, monkeypatch):
    """Not where the server has no https, and not where it leads to http."""
    address, asked = serve()
    official = CIFAR10._replace(url=address.replace("http:", "https:"), **PINS)
    monkeypatch.setattr(download, "_check_server_answers", lambda url: None)
    with pytest.raises(download.DownloadError):
        download.fetch(official, tmp_path / "a.tar.gz", False)
    assert asked == [] and not list(tmp_path.iterdir())

    class Answer:
        url = address

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: Answer())
    with pytest.raises(download.DownloadError, match="without the encryption of https"):
        download.fetch(official, tmp_path / "a.tar.gz", False)


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
