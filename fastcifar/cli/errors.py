"""Errors as a user sees them: one line that says what is wrong, where and what to do, and an exit code."""

from __future__ import annotations

import errno

from fastcifar.augment.dali import DaliUnavailable
from fastcifar.training import memory, processes
from fastcifar.training.state import Diverged

DONE, FAILED, BAD_INPUT, DIVERGED = 0, 1, 2, 3


def message_and_code(error: Exception) -> tuple[str, int]:
    """The line for an error, and the exit code. The line is empty for a bug in fastcifar."""
    if isinstance(error, Diverged):
        return f"training diverged: {error}", DIVERGED
    if isinstance(error, BrokenPipeError):
        return "the program that read this output has ended; write it to a file (continue with --resume)", BAD_INPUT
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "make room or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose"
        return f"{what}; {remedy} another folder (continue a run with --resume)", BAD_INPUT
    if isinstance(error, (ValueError, DaliUnavailable)):  # usage, data, checkpoint, settings that do not fit together
        return str(error), BAD_INPUT
    if memory.ran_out(error):
        return "out of memory before training began; close other programs or use a smaller --subset", BAD_INPUT
    if processes.lost_a_process(error):
        return "another process of this run has ended (its own message says why); continue with --resume", BAD_INPUT
    return "", FAILED
