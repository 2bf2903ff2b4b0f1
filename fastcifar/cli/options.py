"""Words of a command line -> a dataclass, by tyro. A mistake is a `UsageError` of one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Sequence
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class UsageError(ValueError):
    """A wrong flag or value. The message is one line."""


def parse_quietly(kind: type[T], argv: Sequence[str], prog: str, **more: Any) -> T:
    """The `kind` that tyro makes of the words. UsageError in place of tyro's box; SystemExit(0) after --help."""
    import tyro  # takes a tenth of a second: only when flags are read

    messages = io.StringIO()
    wide = {"COLUMNS": "1000"}  # no line breaks in the message: it becomes one line
    wants_help = any(word in ("-h", "--help") for word in argv)
    try:
        with contextlib.redirect_stderr(messages), mock.patch.dict(os.environ, {} if wants_help else wide):
            return tyro.cli(kind, args=list(argv), prog=prog, **more)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None


def _one_line(box: str) -> str:
    """The message in tyro's box, without the frame, the title and the hints."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or set(text) <= {"─", "-"}:  # a border, or the rule before a hint
            sections.append([])
        else:
            sections[-1].append(text)
    texts = [" ".join(section) for section in sections if section]
    if "╭" not in box:  # where the terminal's encoding is ASCII there is no box, and the title is a section
        texts = texts[1:]
    text = re.sub(r"Error parsing (Flags: |Options: )?", "", (texts or [""])[0])
    return f"{text} (see --help)"
