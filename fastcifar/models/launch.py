"""How a kernel of this package is launched, and when it may be used: it must run here and agree with plain torch.

Triton comes with torch's CUDA builds alone, so a file of kernels is imported when one of them is launched.
"""

import importlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("fastcifar")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest difference from plain torch, which rounds once more in between, by the dtype of the kernels' inputs."""


def launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel, such as "models.kernels.statistics", on the current stream of its first argument's card."""
    file, _, name = kernel.rpartition(".")
    with torch.cuda.device_of(arguments[0]):
        getattr(importlib.import_module(f"fastcifar.{file}"), name)[grid](*arguments, **constants)


@contextmanager
def tried(what: str) -> Iterator[None]:
    """Context that tries kernels. An error in it, of Triton, its compiler or the driver, is logged in one line, and the
    program goes on after the context, where plain torch does the same."""
    try:
        yield
    except Exception as e:
        reason = " ".join(str(e).split())[:150]
        log.warning("%s cannot be used here (%s: %s); going on with plain torch", what, type(e).__name__, reason)


def require_close(apart: float, most: float) -> None:
    """ValueError if kernels are further from plain torch than they may be."""
    if apart > most:
        raise ValueError(f"differs from plain torch by {apart:.2g}")


def farthest(expected: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Largest difference of two values, relative to the largest of their tensor or to 1; inf where one is NaN."""
    pairs = zip(expected, found, strict=True)
    apart = [(a.float() - b.float()).abs().amax() / a.float().abs().amax().clamp(min=1) for a, b in pairs]
    return _largest(apart)


def farthest_in_norm(expected: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Largest norm of the difference of two tensors, relative to that of the expected one; inf where one has NaN."""
    pairs = zip(expected, found, strict=True)
    return _largest([(a.float() - b.float()).norm() / a.float().norm() for a, b in pairs])


def _largest(values: list[Tensor]) -> float:
    largest = torch.stack(values).amax().item()  # NaN if one is
    return largest if largest == largest else float("inf")
