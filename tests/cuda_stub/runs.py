"""Whole runs under the stub, watched: every recipe, optimizer, precision, network, norm and scale."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import subject
import torch
from observe import Layouts, Watched, card, make_task, watch_run
from torch import Tensor

PRECISIONS, OPTIMIZERS = ("bf16", "fp16", "fp32"), ("muon", "sgd")


def watched(
    recipe: str = "speedrun94", optimizer: str | None = None, sync_is_error: bool = True, **settings: Any
) -> dict[str, Any]:
    return watch_run(make_task(recipe, optimizer, **settings), sync_is_error)


def deterministic(recipe: str) -> dict[str, Any]:
    """torch refuses every operation of which it knows no deterministic way."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    try:
        return watch_run(make_task(recipe, deterministic=True))
    finally:
        torch.use_deterministic_algorithms(False)


def with_layouts(**settings: Any) -> dict[str, Any]:
    """Also the layout that each convolution of a run works in, cuDNN's host code included."""
    with Layouts() as layouts:
        run = watch_run(make_task(**settings))
    return {**run, "layouts": layouts.seen}


def host_time(recipe: str, recorded: bool, **settings: Any) -> dict[str, Any]:
    """Microseconds of the host per step, and what a step and its batch ask of the card, by image size."""
    task = make_task(recipe, cuda_graph=recorded, epochs=8.0, **settings)
    state = subject.start_state(task)
    task = subject.warm_up(task, state.model)
    with card.counting() as recording:
        step = subject.make_step(task, state, state.model)
    state.model.train()
    by_size = {}
    for epoch, size in enumerate(task.image_sizes):
        executor = Watched(task.executor)
        plan = task.plan(epoch)
        step_us: list[float] = []
        step.begin_epoch()
        with card.without_effects():
            for _ in range(4):
                for x, y in executor.epoch(plan, size):
                    begun = time.perf_counter()
                    step(x, y)
                    step_us.append((time.perf_counter() - begun) * 1e6)
        last = executor.epochs[-1]
        by_size[size] = {"us": statistics.median(step_us[3:]), "least_us": min(step_us), "step": last["steps"][-1],
                         "batch": last["batches"][-1]}  # fmt: skip
    return {"recorded": isinstance(step, subject.GraphedStep), "captured": recording.get("captured", 0),
            "sizes": by_size}  # fmt: skip


# ---- faults put in on purpose, for the checks to find


def with_item_in_step(recorded: bool, sync_is_error: bool) -> dict[str, Any]:
    """A step that reads its loss."""
    update = subject.Step.update

    def update_and_look(self: subject.Step, x: Tensor, y: Tensor) -> None:
        update(self, x, y)
        self.state.loss_sum.item()

    subject.Step.update = update_and_look  # type: ignore[method-assign]
    try:
        return watch_run(make_task(cuda_graph=recorded), sync_is_error)
    finally:
        subject.Step.update = update  # type: ignore[method-assign]


def with_rehearsal_that_does_not_wait() -> dict[str, Any]:
    """No stream waits for another."""
    wait_stream = torch.cuda.Stream.wait_stream
    torch.cuda.Stream.wait_stream = lambda self, other: None  # type: ignore[method-assign]
    try:
        return watch_run(make_task())
    finally:
        torch.cuda.Stream.wait_stream = wait_stream  # type: ignore[method-assign]


class IndexesFromTheHost(subject.TorchExecutor):
    """Picks labels by an index that lies in host memory: torch copies it to the card and waits."""

    def epoch(self, plan: subject.EpochPlan, size_px: int = 32) -> Any:
        for step, (x, _) in enumerate(super().epoch(plan, size_px)):
            yield x, self.data.labels[plan.index[step]]


def with_index_from_the_host() -> dict[str, Any]:
    task = make_task()
    executor = IndexesFromTheHost(task.executor.data)  # type: ignore[attr-defined]
    return watch_run(replace(task, executor=executor), sync_is_error=False)


def dali_falls_back() -> dict[str, Any]:
    """DALI finds no driver that it can use here; `auto` goes on without it."""
    hardware = make_task(augment="auto").hardware
    return {"executor": hardware.executor, "reason": hardware.reasons.get("augment", "")}


def _cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {f"recipe {name}": partial(watched, name) for name in subject.RECIPES}
    for optimizer in OPTIMIZERS:
        for precision in PRECISIONS:
            waits = (precision, optimizer) == ("fp16", "muon")  # GradScaler reads whether there was an overflow
            cases[f"{precision} {optimizer}"] = partial(watched, optimizer=optimizer, precision=precision,
                                                        sync_is_error=not waits)  # fmt: skip
        cases[f"gn-ws {optimizer}"] = partial(watched, optimizer=optimizer, norm="gn-ws")
        cases[f"small {optimizer}"] = partial(watched, optimizer=optimizer, scale="small")
        cases[f"plain {optimizer}"] = partial(watched, optimizer=optimizer, cuda_graph=False)
        cases[f"host time, recorded {optimizer}"] = partial(host_time, "speedrun94", True, optimizer=optimizer)
        cases[f"host time, plain {optimizer}"] = partial(host_time, "speedrun94", False, optimizer=optimizer)
    return cases | {
        "resnet18": partial(watched, network="resnet18"),
        "wide sgd": partial(watched, optimizer="sgd", scale="wide"),
        "resnet18 gn-ws fp16": partial(watched, optimizer="sgd", network="resnet18", norm="gn-ws", precision="fp16"),
        "averaging every step": partial(watched, swa_every=1, swa_start=0.5),
        "averaging every step, plain": partial(watched, swa_every=1, swa_start=0.5, cuda_graph=False),
        "no tail": partial(watched, swa_start=None),
        "ends inside an epoch": partial(watched, epochs=2.5),
        "plateau": partial(watched, schedule="plateau", val_split=0.2, swa_start=None, eval_every=1),
        "deterministic muon": partial(deterministic, "speedrun94"),
        "deterministic sgd": partial(deterministic, "onecycle30"),
        "layouts resnet9": partial(with_layouts, recipe="speedrun94"),
        "layouts resnet18 plain": partial(with_layouts, network="resnet18", optimizer="sgd", cuda_graph=False),
        "fault: item, recorded": partial(with_item_in_step, recorded=True, sync_is_error=False),
        "fault: item, plain, torch looks": partial(with_item_in_step, recorded=False, sync_is_error=True),
        "fault: item, plain, the stub looks": partial(with_item_in_step, recorded=False, sync_is_error=False),
        "fault: rehearsal does not wait": with_rehearsal_that_does_not_wait,
        "fault: index from the host": with_index_from_the_host,
        "dali": dali_falls_back,
    }


CASES = _cases()
