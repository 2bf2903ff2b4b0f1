"""Shows on stderr how far slow work on a data set has come: download, decoding, or drawing the synthetic set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(text: str, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function `advance(n)` that moves the bar forward by n images, or MiB of a download.

    On a terminal a bar is drawn while the context lasts; otherwise one line with `text` is printed at its start. With
    `enabled=False` nothing is printed.
    """
    if not enabled or not sys.stderr.isatty():
        if enabled:
            print(f"fastcifar: {text}", file=sys.stderr, flush=True)
        yield lambda n: None
        return
    from rich.console import Console  # imported here, so that a run from the cache does not wait for it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda n: bar.advance(task, n)
