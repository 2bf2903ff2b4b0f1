"""A terminal of 80 columns in the place of stdout."""

import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def pseudo_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """stdout is a terminal inside the block. After it the list has one item: all that was shown, without its codes."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    controller, shown = pty.openpty()
    parts: list[bytes] = []
    text: list[str] = []

    def read() -> None:
        try:
            while part := os.read(controller, 1 << 16):
                parts.append(part)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patched, os.fdopen(shown, "w") as stdout:
        patched.setattr(sys, "stdout", stdout)
        yield text
    reader.join(10)
    os.close(controller)
    text.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode()))
