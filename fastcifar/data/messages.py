"""What the readers of data say: a `DataError` stops the program, a warning lets it continue, a bar shows slow work.

Every module of this package raises `DataError` for bad input; the command line prints its message as one line.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SUPPORTED_SOURCES = (
    "give a folder or tar with cifar-10-batches-py, cifar-100-python, or train/<class>/*.png|jpg|webp|bmp and "
    "test/<class>/..., a folder or tar with <class>/*.png|jpg|webp|bmp, or an .npz with x_train, y_train, x_test, "
    "y_test"
)
"""The end of each message about a source that is not of a supported kind."""


def printable(text: str) -> str:
    r"""The text with an escape for each character that cannot be printed: `\n`, `\x1b`, `\udcff` for the byte 0xff.

    Names of files come from strangers: what they hold must neither reach the terminal nor add lines. A byte that is not
    UTF-8 is a lone surrogate in Python, which no file of UTF-8 takes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(number: float, noun: str) -> str:
    """A number with its noun, which gets an s where there is not just one: "1 epoch", "7.5 epochs"."""
    return f"{number:.10g} {noun}" + ("" if number == 1 else "s")


class DataError(ValueError):
    """Bad or missing data. The message is one printable line: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def print_warning(text: str) -> None:
    """Prints one warning line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


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
