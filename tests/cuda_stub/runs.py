"""Whole runs under the stub, watched: every recipe, optimizer, precision, network, norm and scale."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import subject
import torch
from agreeing_kernels import agreeing_kernels
from observe import ALL_TRAINED, Layouts, Watch, Watched, WatchedStep, card, make_task, watch_run
from torch import Tensor

COOLED: dict[str, Any] = {"cool_first_stage": (0.1, 0.6)}
"""The second of the epochs at full size is the first whose end has no backward pass through stem and first stage."""
PRECISIONS, OPTIMIZERS = ("bf16", "fp16", "fp32"), ("muon", "sgd")


def watched(
    recipe: str = ALL_TRAINED, optimizer: str | None = None, sync_is_error: bool = True, **settings: Any
) -> dict[str, Any]:
    return watch_run(make_task(recipe, optimizer, **settings), sync_is_error)


def deterministic(recipe: str) -> dict[str, Any]:
    """torch refuses every operation of which it knows no deterministic way. It would fill memory with NaN, and the
    kernels that write over it do nothing here.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return watch_run(make_task(recipe, deterministic=True))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


def with_layouts(**settings: Any) -> dict[str, Any]:
    """Also the layout that each convolution of a run works in, cuDNN's host code included."""
    task = make_task(**settings)  # counts arithmetic in a forward pass on the CPU
    with Layouts() as layouts:
        run = watch_run(task)
    return {**run, "layouts": layouts.seen}


def host_time(recipe: str, recorded: bool, fused_kernels: bool = False, **settings: Any) -> dict[str, Any]:
    """The least microseconds of the host per step and per block, and what they ask of the card, by image size.

    Also what a recording holds, what one update by each optimizer asks for, and what averaging the weights does.
    """
    task = make_task(recipe, cuda_graph=recorded, fused_kernels=fused_kernels, epochs=8.0, **settings)
    state = subject.start_state(task)
    with agreeing_kernels() if fused_kernels else nullcontext():
        subject.warm_up(task, state.model)
        with card.counting() as recording:
            step = subject.make_step(task, state, state.model)
    state.model.train()
    torch.cuda.empty_cache()
    with card.running_beside(task.executor.stream), card.without_effects():
        sizes = {size: time_blocks(task, WatchedStep(step, Watch()), size) for size in task.image_sizes}
        updates = [count_update(state, optimizer) for optimizer in state.optimizers]
        for _ in range(5):
            with timed() as average:
                state.average.add(state.model)
        average_us = average.pop("us")
    return {"recorded": isinstance(step, subject.CapturedStep), "fused": subject.fused.is_fused(state.model),
            "captured": recording.get("captured", 0), "forms": len(subject.step_forms(task)),
            "sizes": sizes, "updates": updates, "average": average, "average_us": average_us}  # fmt: skip


def time_blocks(task: subject.Task, step: WatchedStep, size: int) -> dict[str, Any]:
    """Blocks of some epochs, as the training loop takes them; the first one is not timed."""
    watch = step.watch
    blocks = Watched(task.executor, watch).blocks((task.plan(epoch), size) for epoch in range(7))
    for block in blocks:
        step.begin(block)
        for i in range(len(block)):
            step(i)
        blocks.work_ahead()
    watch.close()
    steps_us = [span["us"] for block in watch.blocks for span in block["steps"]]
    parts = ("next", "begin", "ahead")
    *_, block, _ = watch.blocks  # the last one has none ahead
    return {
        "step_us": min(steps_us),  # the least of many, as the machine may be busy
        "block_us": min(sum(block[part]["us"] for part in parts) for block in watch.blocks[1:-1]),
        "num_steps": len(block["steps"]), "step": block["steps"][-1]["counted"],
        "block": {part: block[part]["counted"] for part in parts},
    }  # fmt: skip


def evaluation(
    recipe: str, recorded: bool, test_images: int = 2500, repeats: int = 3, **settings: Any
) -> dict[str, Any]:
    """What an epoch's evaluation, the mean of the tail with its refresh, and the final evaluation with views ask for;
    and what it asks for to record them. Host time is the least of some, in microseconds.
    """
    task = make_task(recipe, cuda_graph=recorded, test_images=test_images, **settings)
    state = subject.start_state(task)
    subject.warm_up(task, state.model)
    step, views = subject.make_step(task, state, state.model), task.config.evaluation
    told: dict[str, Any] = {}
    with timed() as told["recording"]:
        evaluator = subject.Evaluator(task, state.model, step.capture)
    with timed() as told["recording refresh"]:
        refresh = subject.Refresh(task, state, step.capture)

    def average() -> None:
        state.average.copy_to(state.model)
        refresh()

    parts: dict[str, Callable[[], Any]] = {
        "epoch": lambda: evaluator(task.test),
        "average": average,
        "final": lambda: evaluator(task.test, views.tta, views.tta_share),
    }
    with card.running_beside(task.executor.stream), card.without_effects():
        for name, part in parts.items():
            for _ in range(repeats):
                with timed() as told[name]:
                    part()
                told[f"{name}_us"] = min(told.get(f"{name}_us", told[name]["us"]), told[name].pop("us"))
    return {**told, "fused": subject.fused.is_fused(state.model)}


@contextmanager
def timed() -> Iterator[dict[str, Any]]:
    """What was counted in between, with the host's microseconds."""
    told, since = {}, time.process_time()
    with card.counting() as counted:
        yield told
        us = (time.process_time() - since) * 1e6
    told |= {**counted, "us": us}


def count_update(state: subject.State, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a step of an optimizer asks of the card, in fp16 with the check for overflow, and its name."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    with card.counting() as counted:
        state.scaler.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return {"name": type(optimizer).__name__, "counted": counted}


def executor_waits() -> bool:
    """Whether an executor's stream waits for the images, which another one may still be bringing to the card."""
    images = make_task().executor.images
    images.padded.clone()
    stream = subject.TorchExecutor(images).stream
    return card.knows(stream, torch.cuda.current_stream())


def preparation() -> dict[str, Any]:
    """What a card makes of its images before the first step: how often, and what that and the set-up ask for."""
    preprocess, made = subject.preparing.preprocess, list[dict[str, int]]()

    def counted(*arguments: Any, **settings: Any) -> None:
        with card.counting() as asked:
            preprocess(*arguments, **settings)
        made.append(asked)

    with card.counting() as set_up:
        task = make_task()
    with mock.patch.object(subject.preparing, "preprocess", counted):
        watch_run(task)
    return {"set_up": set_up, "made": made}


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


def with_blocks_that_are_not_waited_for() -> dict[str, Any]:
    """The training reads a block while the executor's stream may still be making it."""
    wait_event = torch.cuda.Stream.wait_event
    task = make_task()
    beside = task.executor.stream

    def wait_for_others(self: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        if torch.cuda.current_stream() == beside or self == beside:
            wait_event(self, event)

    torch.cuda.Stream.wait_event = wait_for_others  # type: ignore[method-assign]
    try:
        return watch_run(task)
    finally:
        torch.cuda.Stream.wait_event = wait_event  # type: ignore[method-assign]


class IndexesFromTheHost(subject.TorchExecutor):
    """Picks labels by an index that lies in host memory: torch copies it to the card and waits."""

    def make(self, plan: subject.EpochPlan, size_px: int) -> subject.Block:
        return replace(super().make(plan, size_px), labels=self.images.labels[plan.index.flatten()])


def with_index_from_the_host() -> dict[str, Any]:
    task = make_task()
    executor = IndexesFromTheHost(task.executor.images)
    return watch_run(replace(task, executor=executor), sync_is_error=False)


def _cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {f"recipe {name}": partial(watched, name) for name in subject.RECIPES}
    for optimizer in OPTIMIZERS:
        for precision in PRECISIONS:
            cases[f"{precision} {optimizer}"] = partial(watched, optimizer=optimizer, precision=precision)
        cases[f"gn-ws {optimizer}"] = partial(watched, optimizer=optimizer, norm="gn-ws")
        cases[f"small {optimizer}"] = partial(watched, optimizer=optimizer, scale="small")
        cases[f"plain {optimizer}"] = partial(watched, optimizer=optimizer, cuda_graph=False)
        cases[f"host time, recorded {optimizer}"] = partial(host_time, ALL_TRAINED, True, optimizer=optimizer)
        cases[f"plain fp16 {optimizer}"] = partial(watched, optimizer=optimizer, precision="fp16", cuda_graph=False)
        cases[f"host time, fp16 {optimizer}"] = partial(host_time, ALL_TRAINED, True, optimizer=optimizer,
                                                        precision="fp16")  # fmt: skip
        cases[f"host time, plain {optimizer}"] = partial(host_time, ALL_TRAINED, False, optimizer=optimizer)
    return cases | {
        "resnet18": partial(watched, network="resnet18"),
        "wide sgd": partial(watched, optimizer="sgd", scale="wide"),
        "resnet18 gn-ws fp16": partial(watched, optimizer="sgd", network="resnet18", norm="gn-ws", precision="fp16"),
        "averaging every step": partial(watched, swa_every=1, swa_start=0.5),
        "SWAG every step": partial(watched, swa_every=1, swa_start=0.5, swag_rank=4),
        "averaging every step, plain": partial(watched, swa_every=1, swa_start=0.5, cuda_graph=False),
        "no tail": partial(watched, swa_start=None),
        "stem fixed": partial(watched, train_stem="low-res"),
        "first stage cooled": partial(watched, **COOLED),
        "first stage cooled, sgd": partial(watched, optimizer="sgd", **COOLED),
        "first stage cooled, plain": partial(watched, cuda_graph=False, **COOLED),
        "ends inside an epoch": partial(watched, epochs=2.5),
        "plateau": partial(watched, schedule="plateau", val_split=0.2, swa_start=None, eval_every=1),
        "deterministic muon": partial(deterministic, ALL_TRAINED),
        "deterministic sgd": partial(deterministic, "onecycle30"),
        "layouts resnet9": partial(with_layouts, recipe=ALL_TRAINED),
        "layouts resnet18 plain": partial(with_layouts, network="resnet18", optimizer="sgd", cuda_graph=False),
        "fault: item, recorded": partial(with_item_in_step, recorded=True, sync_is_error=False),
        "fault: item, plain, torch looks": partial(with_item_in_step, recorded=False, sync_is_error=True),
        "fault: item, plain, the stub looks": partial(with_item_in_step, recorded=False, sync_is_error=False),
        "fault: rehearsal does not wait": with_rehearsal_that_does_not_wait,
        "fault: index from the host": with_index_from_the_host,
        "fault: blocks are not waited for": with_blocks_that_are_not_waited_for,
        "evaluation, recorded": partial(evaluation, ALL_TRAINED, True),
        "evaluation, plain": partial(evaluation, ALL_TRAINED, False),
        "executor waits": executor_waits,
        "preparation": preparation,
    }


CASES = _cases()
