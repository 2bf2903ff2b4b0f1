"""Runs with the fused kernels and the fused update under the stub."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from agreeing_kernels import WatchedUpdate, agreeing_kernels
from observe import ALL_TRAINED, card, make_task, watch_run
from runs import COOLED, evaluation, host_time


def with_fused_kernels(conv_kernels: bool = False, **settings: Any) -> dict[str, Any]:
    """Triton's host code loads and launches the kernels, which do nothing: what the check before a run finds is left
    out. Launches are by kernel.
    """
    with agreeing_kernels(conv_kernels):
        run = watch_run(make_task(fused_kernels=True, **settings))
    order = {"beside_backward": WatchedUpdate.beside_backward, "missing_waits": WatchedUpdate.missing_waits}
    return {**run, **order, "kernels": card.kernels()}


def evaluation_with_fused_kernels() -> dict[str, Any]:
    with agreeing_kernels():
        return evaluation(ALL_TRAINED, True, fused_kernels=True)


def with_update_that_does_not_wait() -> dict[str, Any]:
    """The groups that are updated beside the backward pass do not wait for their gradients."""
    with mock.patch.object(WatchedUpdate, "waits", False):
        return with_fused_kernels()


BATCH = 20
"""Images of a step of `make_task`."""


class CompilationError(Exception):
    """Those of Triton are no RuntimeError."""


def with_update_that_does_not_compile() -> dict[str, Any]:
    """For the batch of the step alone, so that the check before does not see it."""
    finish = WatchedUpdate.finish

    def fail_in_a_step(self: WatchedUpdate, loss: Any, *arguments: Any) -> None:
        if len(loss.d_features) == BATCH:
            raise CompilationError("made to fail")
        finish(self, loss, *arguments)

    with mock.patch.object(WatchedUpdate, "finish", fail_in_a_step):
        return with_fused_kernels()


CASES: dict[str, Callable[[], Any]] = {
    "muon": with_fused_kernels,
    "plain": partial(with_fused_kernels, cuda_graph=False),
    "sgd": partial(with_fused_kernels, optimizer="sgd"),
    "stem fixed": partial(with_fused_kernels, train_stem="low-res"),
    "stem fixed and cutout": partial(with_fused_kernels, train_stem="low-res", cutout_px=8),
    "first stage cooled": partial(with_fused_kernels, **COOLED),
    "first stage cooled, stem fixed": partial(with_fused_kernels, train_stem="low-res", **COOLED),
    "convolutions": partial(with_fused_kernels, conv_kernels=True),
    "convolutions, plain": partial(with_fused_kernels, conv_kernels=True, cuda_graph=False),
    "evaluation": evaluation_with_fused_kernels,
    "averaging": partial(with_fused_kernels, swa_every=1, swa_start=0.5),
    "head alone": partial(with_fused_kernels, freeze="all-but-head"),
    "fp16": partial(with_fused_kernels, precision="fp16"),
    "fault: the update does not compile": with_update_that_does_not_compile,
    "fault: the update does not wait": with_update_that_does_not_wait,
    **{f"host time, {recipe}": partial(host_time, recipe, True, True)
       for recipe in (ALL_TRAINED, "speedrun94", "accurate96", "onecycle30")},
}  # fmt: skip
