"""The training loop: plan an epoch, step through it, average the weights in the tail, measure, finish.

`train` is the method from top to bottom. Observers (`fastcifar.training.observer`) watch it: progress, metrics,
checkpoints, pictures. Steps and epochs count from 0; a metrics row says epoch 1 for the first.
"""

import math
from collections.abc import Sequence
from typing import Any

from fastcifar.optim.swag import Swag
from fastcifar.training.compiling import uncompile
from fastcifar.training.evaluate import Evaluator
from fastcifar.training.fixed_parts import let_all_train
from fastcifar.training.observer import Observer, RunOutcome, Stop, StopAt
from fastcifar.training.parts import rates_in_use
from fastcifar.training.prepare import Prepared, prepare
from fastcifar.training.processes import sum_over_processes
from fastcifar.training.start import initial_state
from fastcifar.training.state import Diverged, State
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.summary import Accuracies, summarize
from fastcifar.training.task import Task

CHANCE_STEPS, CHANCE_CLASSES = 50, 10
"""Steps of the first epoch, and classes, from which on an accuracy at chance means that the training has failed. Of two
classes half are right by chance, and a sound run may be there after its warm-up."""


def train(task: Task, observers: Sequence[Observer] = (), stopwatch: Stopwatch | None = None) -> RunOutcome:
    """Trains a run to its end, from its beginning or from the checkpoint in `command.resume`.

    Raises Diverged when training has failed. An observer may raise `Stop` to end the run normally; any other error
    ends it without a result.
    """
    target = task.config.run.stop_at
    ends = [] if target is None else [StopAt(target)]
    stopwatch = stopwatch or Stopwatch(task.hardware.device)
    with stopwatch("compile"):
        state = initial_state(task, stopwatch)
        model, ready = state.model, prepare(task, state)
    for row in state.history[-1:]:  # of a resumed run, which may have reached its target before it was interrupted
        tell(ends, "on_epoch", state, row)

    observers = [*ends, *observers]
    blocks = task.executor.blocks(task.plans(state.step))
    while not state.is_over:
        model.train()
        with stopwatch("train"):  # with the augmentation
            block = next(blocks)
            ready.step.begin(block)
            for i in range(len(block)):
                ready.step(i)
                if state.rates.averages[state.step]:
                    state.average.add(model)
                state.step += 1
                tell(observers, "on_step", state)
                if state.is_over:
                    break
            blocks.work_ahead()
        if state.step % task.steps_per_epoch == 0 or state.is_over:
            row = end_epoch(task, state, ready.accuracies)
            tell(observers, "on_epoch", state, row)

    result = finish(task, state, ready)
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


def end_epoch(task: Task, state: State, accuracies: Evaluator) -> dict[str, Any]:
    """Measures the epoch and adds its row to the history. Raises Diverged when training has visibly failed."""
    config = task.config
    epoch = (state.step - 1) // task.steps_per_epoch
    steps = state.step - (state.history[-1]["step"] if state.history else 0)
    loss = sum_over_processes(state.loss_sum.clone(), task.world).item() / steps / task.world.size
    state.loss_sum.zero_()
    lr, momentum = rates_in_use(state.optimizers[0], *state.rates[state.step - 1])
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} in epoch {epoch + 1} at learning rate {lr:g}: lower --lr-peak"
                       + (" or use --precision bf16" if task.config.machine.precision == "fp16" else ""))  # fmt: skip
    accuracy, test_loss = None, None
    is_last = state.is_over
    if is_last or (epoch + 1) % config.evaluation.eval_every == 0:
        with state.stopwatch("eval"):
            accuracy, _, test_loss = accuracies(task.watched)
        state.rates.end_epoch(state.step, accuracy)
        test_loss = test_loss if math.isfinite(test_loss) else None  # logits beyond fp16: a checkpoint takes numbers
    measured = {"accuracy_test": accuracy, "loss_test": test_loss}
    if config.data.val_split:
        measured = {"accuracy_test": None, "accuracy_val": accuracy, "loss_val": test_loss}
    row = {
        "epoch": epoch + 1, "step": state.step,
        "phase": "tail" if state.step > state.rates.tail_step else "cycle", "lr": lr, "momentum": momentum,
        "loss_train": loss, **measured, "time_s": round(state.stopwatch.time_s["train"], 4),
    }  # fmt: skip
    state.history.append(row)
    num_classes = len(task.dataset.classes)
    had_its_chance = epoch == 0 and steps >= CHANCE_STEPS and num_classes >= CHANCE_CLASSES and not is_last
    if had_its_chance and accuracy is not None and accuracy < 1.2 / num_classes:
        raise Diverged(
            f"accuracy is {accuracy:.1%} after the first epoch, which is chance for {num_classes} classes "
            f"(loss {loss:.3f}): lower --lr-peak (now {config.schedule.peak:g}) or check the labels"
        )
    return row


def finish(task: Task, state: State, ready: Prepared) -> RunOutcome:
    """Averages the weights of the tail, refreshes batch norm, and measures the final accuracies.

    The averaged weights take the place of the raw ones in the network.
    """
    stopwatch, model, has_tail = state.stopwatch, state.model, state.average.count > 0
    accuracies, evaluation = ready.accuracies, task.config.evaluation
    raw = state.history[-1].get("accuracy_test")  # None when the last epoch was measured on held-out images
    if has_tail:
        if raw is None:
            with stopwatch("eval"):
                raw = accuracies(task.test).plain
        with stopwatch("swa"), task.parts.draws(task.config.seed, task.num_steps, task.hardware.device):
            state.average.copy_to(model)
            ready.refresh()
    before_s = stopwatch.seconds("eval")
    with stopwatch("eval"):
        plain, with_views, test_loss = accuracies(task.test, evaluation.tta, evaluation.tta_share)
    measured = Accuracies(
        raw=plain if raw is None else raw,
        averaged=plain if has_tail else None,
        with_views=with_views if evaluation.tta != "none" else None,
    )
    summary = {**summarize(task, state, measured, ready.facts), "loss_test": test_loss}
    summary["time_s"]["eval_final"] = round(stopwatch.seconds("eval") - before_s, 4)
    swag = state.average if has_tail and isinstance(state.average, Swag) else None
    uncompile(model)  # it leaves the run as a plain network
    let_all_train(model)
    return RunOutcome(model, summary, state.history, state.rates, swag)
