"""The fused kernels under the stub: loaded and launched, they do nothing, and are then taken to agree with torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar
from unittest import mock

import subject
import torch
from observe import card
from torch import Tensor


@contextmanager
def agreeing_kernels(conv_kernels: bool = False) -> Iterator[None]:
    """Triton's kernels are loaded and launched, and then taken to agree with plain torch. Of the timings of kernels for
    convolutions, which are no time here, the last is the best, or the first.
    """
    checked = (subject.fused, subject.fused_update, subject.stem, subject.conv_choice)
    timer, timed = subject.preparing.captured_ms, itertools.count(0, -1 if conv_kernels else 1)
    before, update = [module.largest_difference for module in checked], subject.fused_update.FusedUpdate

    def load_and_agree(check: Callable[..., float], *arguments: Any) -> float:
        check(*arguments)
        return 0.0

    def run_and_count(work: Callable[[], object]) -> float:
        timer(work)
        return next(timed)

    for module, check in zip(checked, before, strict=True):
        module.largest_difference = partial(load_and_agree, check)
    subject.preparing.captured_ms = run_and_count
    subject.fused_update.FusedUpdate = WatchedUpdate  # type: ignore[misc]
    WatchedUpdate.missing_waits = WatchedUpdate.beside_backward = 0
    card.forget_kernels()
    try:
        yield
    finally:
        subject.preparing.captured_ms = timer
        for module, check in zip(checked, before, strict=True):
            module.largest_difference = check
        subject.fused_update.FusedUpdate = update  # type: ignore[misc]
        for stream in WatchedUpdate.streams:  # torch hands them out again, to work that must be in order
            card.run_beside(stream, False)
        WatchedUpdate.streams.clear()


class WatchedUpdate(subject.fused_update.FusedUpdate):
    """Its stream runs beside the backward pass. What must be in order is looked at here: it waits for the gradients,
    and the step waits for it."""

    waits: ClassVar[bool] = True
    beside_backward: ClassVar[int] = 0
    missing_waits: ClassVar[int] = 0
    streams: ClassVar[list[torch.cuda.Stream]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.beside:
            card.run_beside(self.beside, True)
            self.streams.append(self.beside)

    def _arrived(self, group: Any, p: Tensor) -> None:
        with nullcontext() if self.waits else mock.patch.object(torch.cuda.Stream, "wait_stream"):
            super()._arrived(group, p)
        if group.missing == 0:
            WatchedUpdate.beside_backward += 1
            WatchedUpdate.missing_waits += not card.knows(self.beside, torch.cuda.current_stream())

    def finish(self, *arguments: Any) -> None:
        super().finish(*arguments)
        if self.beside:
            WatchedUpdate.missing_waits += not card.knows(torch.cuda.current_stream(), self.beside)
