"""Reports problems with data: `DataError` stops the program, `print_warning` lets it continue.

Every module of this package raises `DataError` for bad input; the command line prints its message as one line.
"""

from __future__ import annotations

import sys

SUPPORTED_SOURCES = (
    "give a folder or tar with cifar-10-batches-py, cifar-100-python, or train/<class>/*.png|jpg and test/<class>/..., "
    "or an .npz with x_train, y_train, x_test, y_test"
)
"""The end of each message about a source that is not of a supported kind."""


def printable(text: str) -> str:
    r"""The text with an escape for each character that cannot be printed: `\n`, `\x1b`, `\udcff` for the byte 0xff.

    Names of files come from strangers: what they hold must neither reach the terminal nor add lines. A byte that is not
    UTF-8 is a lone surrogate in Python, which no file of UTF-8 takes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class DataError(ValueError):
    """Bad or missing data. The message is one printable line: what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def print_warning(text: str) -> None:
    """Prints one warning line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
