"""Errors as a user sees them: one line that says what is wrong, where and what to do, and an exit code."""

from __future__ import annotations

import errno

from fastcifar.augment.dali import DaliUnavailable
from fastcifar.runs.checkpoint import ran_out_of_memory
from fastcifar.training import processes
from fastcifar.training.state import Diverged

DONE, FAILED, BAD_INPUT, DIVERGED = 0, 1, 2, 3


def message_and_code(error: Exception, training: bool = True) -> tuple[str, int]:
    """The line for an error, and the exit code. The line is empty for a bug in fastcifar.

    training: False for a command that trains no run, so that none can be continued.
    """
    to_resume = " (continue {} with --resume)" if training else ""
    if isinstance(error, Diverged):
        return f"training diverged: {error}", DIVERGED
    if isinstance(error, BrokenPipeError):
        return (
            f"the program that read this output has ended; write it to a file{to_resume.format('the run')}",
            BAD_INPUT,
        )
    if isinstance(error, OSError):
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        what = f"{where}: {error.strerror}" if where else str(error)
        remedy = "make room or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose"
        return f"{what}; {remedy} another {'folder' if training else 'place'}{to_resume.format('a run')}", BAD_INPUT
    if isinstance(error, (ValueError, DaliUnavailable)):  # usage, data, checkpoint, settings that do not fit together
        return str(error), BAD_INPUT
    if ran_out_of_memory(error):
        when, less = (" before training began", "a smaller --subset") if training else ("", "fewer images")
        return f"out of memory{when}; close other programs or use {less}", BAD_INPUT
    if processes.lost_a_process(error):
        return "another process of this run has ended (its own message says why); continue with --resume", BAD_INPUT
    return "", FAILED
