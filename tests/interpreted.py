"""Triton's interpreter without half of its cost, for the scripts of these tests that run kernels on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from triton import language
from triton.runtime import interpreter


class ForGood:
    """Stands for the interpreter's record of what it replaced: nothing is put back."""

    def restore(self) -> None:
        pass


def lighten() -> None:
    """The interpreter replaces the functions of `triton.language` at each launch, and again at each call inside a
    kernel, `tl.zeros` and `tl.sum` included: a fifth of its time. From now on it does so once, until the process
    ends. Nor does it repeat each sum and product of whole numbers in 64 bits to find an overflow, which takes as much
    again: no place of these tests' small tensors comes near 2^31.
    """
    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    patch, done = interpreter._patch_lang, set[bool]()

    def once(function: Callable[..., Any]) -> ForGood:
        """A kernel sees the language itself, the language's own functions see its core."""
        is_core = not any(value is language for value in function.__globals__.values())
        if is_core not in done:
            done.add(is_core)
            patch(function)
        return ForGood()

    interpreter._patch_lang = once
