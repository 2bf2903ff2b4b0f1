"""The training loop: plan an epoch, step through it, average the weights in the tail, measure, finish.

`train` is the method from top to bottom. Observers (`fastcifar.training.observer`) watch it: progress, metrics,
checkpoints, pictures. Steps and epochs count from 0; a metrics row says epoch 1 for the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastcifar.optim.swag import Swag
from fastcifar.training.evaluate import Evaluator
from fastcifar.training.observer import Observer, RunOutcome, Stop, StopAt
from fastcifar.training.processes import data_parallel, sum_over_processes
from fastcifar.training.refresh import Refresh
from fastcifar.training.state import Diverged, State
from fastcifar.training.step import make_step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.summary import Accuracies, summarize
from fastcifar.training.task import Task, start
from fastcifar.training.warm_up import prepare, warm_up

CHANCE_STEPS = 50
"""Steps of the first epoch after which an accuracy at chance means that the training has failed."""


def train(task: Task, observers: Sequence[Observer] = (), stopwatch: Stopwatch | None = None) -> RunOutcome:
    """Trains a run to its end, from its beginning or from the checkpoint in `command.resume`.

    Raises Diverged when training has failed. An observer may raise `Stop` to end the run normally; any other error
    ends it without a result.
    """
    if task.config.run.stop_at is not None:
        observers = [StopAt(task.config.run.stop_at), *observers]
    stopwatch = stopwatch or Stopwatch(task.hardware.device)
    with stopwatch("compile"):
        state = start(task, stopwatch)
        model = state.model
        task = warm_up(task, model)
        step = make_step(task, state, data_parallel(model, task.world, task.hardware.device))
        accuracies = Evaluator(task, model, step.capture)
        refresh = Refresh(task, state, step.capture)

    if task.hardware.device.type == "cuda" and state.step == 0:
        with stopwatch("train"):
            prepare(task, model)
    blocks = task.executor.blocks(task.plans(state.step))
    while not state.is_over:
        model.train()
        with stopwatch("train"):  # with the augmentation
            block = next(blocks)
            step.begin(block)
            for i in range(len(block)):
                step(i)
                state.step += 1
                if joins_average(task, state):
                    state.average.add(model)
                tell(observers, "on_step", state)
                if state.is_over:
                    break
            blocks.work_ahead()
        if state.step % task.steps_per_epoch == 0 or state.is_over:
            row = end_epoch(task, state, accuracies)
            tell(observers, "on_epoch", state, row)

    result = finish(task, state, accuracies, refresh)
    for observer in observers:
        observer.on_end(result)
    return result


def tell(observers: Sequence[Observer], event: str, state: State, *told: Any) -> None:
    """Tells all observers of an event, also when one of them ends the run by it."""
    for observer in observers:
        try:
            getattr(observer, event)(state, *told)
        except Stop as stop:
            state.stopped = state.stopped or str(stop) or type(observer).__name__


def joins_average(task: Task, state: State) -> bool:
    """Whether the weights after this step join the average: every k steps of the tail, or at its epochs' ends."""
    tail, in_tail = task.config.tail, state.step - state.schedule.tail_step
    if tail is None or in_tail <= 0:
        return False
    is_last = state.step == task.num_steps
    if tail.every_steps is not None:
        return in_tail % tail.every_steps == 0 or (is_last and state.average.count == 0)
    return state.step % task.steps_per_epoch == 0 or is_last


def end_epoch(task: Task, state: State, accuracies: Evaluator) -> dict[str, Any]:
    """Measures the epoch and adds its row to the history. Raises Diverged when training has visibly failed."""
    config = task.config
    epoch = (state.step - 1) // task.steps_per_epoch
    steps = state.step - (state.history[-1]["step"] if state.history else 0)
    loss = sum_over_processes(state.loss_sum.clone(), task.world).item() / steps / task.world.size
    state.loss_sum.zero_()
    lr, momentum = state.schedule.table[state.step - 1].tolist()
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} in epoch {epoch + 1} at learning rate {lr:g}: lower --lr-peak"
                       + (" or use --precision bf16" if task.hardware.precision == "fp16" else ""))  # fmt: skip
    accuracy: float | None = None
    is_last = state.is_over
    if is_last or (epoch + 1) % config.evaluation.eval_every == 0:
        with state.stopwatch("eval"):
            accuracy, _ = accuracies(task.watched)
        state.schedule.end_epoch(state.step, accuracy)
    measured = {"accuracy_test": accuracy}
    if config.data.val_split:
        measured = {"accuracy_test": None, "accuracy_val": accuracy}
    row = {
        "epoch": epoch + 1, "step": state.step,
        "phase": "tail" if state.step > state.schedule.tail_step else "cycle", "lr": lr, "momentum": momentum,
        "loss_train": loss, **measured, "time_s": round(state.stopwatch.time_s["train"], 4),
    }  # fmt: skip
    state.history.append(row)
    num_classes = len(task.dataset.classes)
    if epoch == 0 and steps >= CHANCE_STEPS and accuracy is not None and accuracy < 1.2 / num_classes and not is_last:
        raise Diverged(
            f"accuracy is {accuracy:.1%} after the first epoch, which is chance for {num_classes} classes "
            f"(loss {loss:.3f}): lower --lr-peak (now {config.schedule.peak:g}) or check the labels"
        )
    return row


def finish(task: Task, state: State, accuracies: Evaluator, refresh: Refresh) -> RunOutcome:
    """Averages the weights of the tail, refreshes batch norm, and measures the final accuracies.

    The averaged weights take the place of the raw ones in the network.
    """
    stopwatch, model, has_tail = state.stopwatch, state.model, state.average.count > 0
    evaluation = task.config.evaluation
    raw = state.history[-1].get("accuracy_test")  # None when the last epoch was measured on held-out images
    if has_tail:
        if raw is None:
            with stopwatch("eval"):
                raw, _ = accuracies(task.test)
        with stopwatch("swa"), task.parts.draws(task.config.seed, task.num_steps, task.hardware.device):
            state.average.copy_to(model)
            refresh()
    before_s = stopwatch.seconds("eval")
    with stopwatch("eval"):
        plain, with_views = accuracies(task.test, evaluation.tta, evaluation.tta_share)
    eval_final_s = stopwatch.seconds("eval") - before_s
    measured = Accuracies(
        raw=plain if raw is None else raw,
        averaged=plain if has_tail else None,
        with_views=with_views if evaluation.tta != "none" else None,
    )
    summary = summarize(task, state, measured, eval_final_s)
    swag = state.average if has_tail and isinstance(state.average, Swag) else None
    model._compiled_call_impl = None  # it leaves the run as a plain network
    return RunOutcome(model, summary, state.history, state.schedule, swag)
