"""Training: set-up, warm-up, clock, epochs, averaging tail, result. THE loop is `train`.

Shapes: B images of a step; steps and epochs count from 0, and a metrics line says epoch 1 for the first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar import checkpoint, distributed, evaluate, record
from fastcifar.augment import DeviceData, draw_plan, side_at, test_batches
from fastcifar.config import Config
from fastcifar.job import Job, checkpoint_is_due, start
from fastcifar.progress import epoch_line
from fastcifar.schedules import Rule, Schedule
from fastcifar.state import State, skipped_steps
from fastcifar.step import autocast, make_step, noise
from fastcifar.swa import REFRESH_IMAGES, refresh_batch_norm

EVAL_BATCH = 1000


class Diverged(RuntimeError):
    """The loss is not finite, or accuracy is still at chance after an epoch; the message is a diagnosis."""


class Interrupted(RuntimeError):
    """A signal arrived; the step was finished and saved. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.number = number


@dataclass(frozen=True)
class Result:
    """What a run gives back. Weights are those that `summary["accuracy"]` speaks of."""

    model: nn.Module
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    schedule: Schedule


def train(job: Job, rule: Rule | None = None) -> Result:
    """Trains a run to its end, from its beginning or from where `config.resume` left it.

    Diverged and Interrupted end it early, the last checkpoint kept. With `job.out` the run folder is written.
    """
    config, watch, spe = job.config, job.watch, job.steps_per_epoch
    with watch("compile"):
        state = start(job, rule)
        model = state.model
        forward = warm_up(job, model)
        step = make_step(job, state, distributed.data_parallel(forward, job.world, job.machine.device))
    if state.history:
        _write(job, "metrics.jsonl", lambda path: record.write_lines(path, state.history))
    saved_at_s = 0.0
    while state.step < job.num_steps:
        epoch, first = divmod(state.step, spe)
        signal = None
        model.train()
        step.begin_epoch()
        with watch("train"):
            plan = draw_plan(config, job.num_train, epoch).part(job.world.rank, job.world.size)
            plan = plan.steps(first, min(spe, job.num_steps - epoch * spe))
            for x, y in job.executor.epoch(plan, side_at(config, epoch)):
                step(x, y)
                state.step += 1
                job.progress.step(state.step)
                if _records(state, config, spe, job.num_steps):
                    state.mean.record(model)
                if signal := distributed.agree(job.stop(), job.world, state.step):
                    break
        if state.step % spe == 0 or state.step == job.num_steps:
            _end_epoch(job, state, forward)
        signal = signal or distributed.agree(job.stop(), job.world)
        if (
            checkpoint_is_due(config, epoch, watch.time_s["train"] - saved_at_s)
            or signal
            or state.step == job.num_steps
        ):
            _save(job, state, must=bool(signal))
            saved_at_s = watch.time_s["train"]
        if signal:
            raise Interrupted(signal)
    return _finish(job, state)


def _records(state: State, config: Config, steps_per_epoch: int, num_steps: int) -> bool:
    """Whether the weights after this step belong in the average: every k steps of the tail, or at its epochs' ends."""
    done = state.step - state.schedule.tail_step
    if done <= 0:
        return False
    if config.swa_every is not None:
        return done % config.swa_every == 0 or (state.step == num_steps and state.mean.count == 0)
    return state.step % steps_per_epoch == 0 or state.step == num_steps


def warm_up(job: Job, model: nn.Module) -> nn.Module:
    """Runs every batch shape once on random images, so that no compiling or choosing of kernels is inside the clock.

    The model is left as it was. Where the compiler fails the plain model is used, and one line says so. On a CPU
    without compiling nothing needs warming.
    """
    device, mode = job.machine.device, job.machine.compile
    # cuDNN times its kernels for each shape when it first sees it, which is here.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    if mode == "off" and device.type == "cpu":
        return model
    before = copy.deepcopy(model.state_dict())

    def run_all_shapes() -> None:
        gen = torch.Generator().manual_seed(0)
        shapes = [(True, job.batch_size // job.world.size, side) for side in sorted({job.config.low_res_px, 32})]
        evaluated = {min(EVAL_BATCH, len(data.labels)) for data in (job.watched, job.test)}
        if job.config.tta != "none":
            evaluated |= {evaluate.count_unsure(batch, job.config.tta_share) for batch in evaluated}
        for training, batch, side in [*shapes, *((False, batch, 32) for batch in sorted(evaluated))]:
            x = noise(job.machine, batch, side, gen)
            model.train(training)
            with torch.set_grad_enabled(training), autocast(job.machine):
                logits = model(x)
            if training:
                logits.sum().backward()

    try:
        if mode != "off":
            model.compile(mode=mode, dynamic=False)  # else the second image size is compiled for any size
        run_all_shapes()
    except Exception as e:
        if mode == "off":
            raise
        model._compiled_call_impl = None  # back to the plain forward
        torch._dynamo.reset()
        reason = " ".join(str(e).split())[:150]
        job.machine = replace(job.machine, compile="off")  # what the record will say
        job.progress.say(f"torch.compile failed ({type(e).__name__}: {reason}); going on without it")
        run_all_shapes()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return model


def _accuracies(job: Job, model: nn.Module, data: DeviceData, tta: str = "none", may_stop: bool = False) -> list[float]:
    """Plain, and with the views of `tta`; over the images of all processes together."""
    model.eval()
    batches = test_batches(data, min(EVAL_BATCH, len(data.labels)))
    batches = _until_stopped(job, batches) if may_stop else batches
    with autocast(job.machine):
        right = evaluate.count_right(model, batches, tta, job.config.tta_share)
    images = int(distributed.total(torch.tensor(len(data.labels)), job.world))  # on the host: known without a wait
    return [count / images for count in distributed.total(right, job.world).tolist()]


def _end_epoch(job: Job, state: State, model: nn.Module) -> None:
    """The metrics line of an epoch; Diverged when training has visibly failed."""
    spe, config = job.steps_per_epoch, job.config
    epoch = (state.step - 1) // spe
    steps = state.step - (state.history[-1]["step"] if state.history else 0)
    loss = distributed.total(state.loss_sum.clone(), job.world).item() / steps / job.world.size
    state.loss_sum.zero_()
    lr, momentum = state.schedule.table[state.step - 1].tolist()
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} in epoch {epoch + 1} at learning rate {lr:g}: lower --lr-peak"
                       + (" or use --precision bf16" if job.machine.precision == "fp16" else ""))  # fmt: skip
    value: float | None = None
    last = state.step == job.num_steps
    if last or (epoch + 1) % config.eval_every == 0:
        with job.watch("eval"):
            value, _ = _accuracies(job, model, job.watched)
        state.schedule.end_epoch(state.step, value)
    on_test = {"accuracy_test": None, "accuracy_val": value} if config.val_split else {"accuracy_test": value}
    tail = state.step > state.schedule.tail_step
    row = {
        "epoch": epoch + 1, "step": state.step, "phase": "tail" if tail else "cycle", "lr": lr, "momentum": momentum,
        "loss_train": loss, **on_test, "time_s": round(job.watch.time_s["train"], 4),
    }  # fmt: skip
    state.history.append(row)
    _write(job, "metrics.jsonl", lambda path: record.write_lines(path, state.history))
    job.progress.say(epoch_line(row, job.num_steps, spe))
    chance = 1 / len(job.dataset.classes)
    if epoch == 0 and steps >= 50 and value is not None and value < 1.2 * chance and not last:
        raise Diverged(
            f"accuracy is {value:.1%} after the first epoch, which is chance for {len(job.dataset.classes)} classes "
            f"(loss {loss:.3f}): lower --lr-peak (now {config.lr_peak:g}) or check the labels"
        )


def _save(job: Job, state: State, must: bool) -> None:
    """Writes checkpoint.pt, unless the weights are ruined: then the good one before is kept, and Diverged tells."""
    world = job.world
    # Their mean, so that any number of processes can go on; in place, as a recorded step adds to this very tensor.
    state.loss_sum.copy_(distributed.total(state.loss_sum, world) / world.size)
    if not state.is_finite():
        lr = state.schedule.table[state.step - 1, 0].item()
        raise Diverged(f"weights or loss are not finite at step {state.step}, learning rate {lr:g}: lower --lr-peak")
    tree = {**state.tree(), "time_s": {phase: job.watch.time_s[phase] for phase in ("train", "eval")}}
    _write(job, "checkpoint.pt", lambda path: checkpoint.save(path, job.config, job.dataset.digest, tree), must)


def _write(job: Job, name: str, write: Callable[[Path], None], must: bool = False) -> None:
    """Lets `write` make a file of the run folder. A full disk ends no training, unless the file `must` be written."""
    if not (job.out and job.world.leads):
        return
    try:
        write(job.out / name)
    except OSError as e:
        if must:
            raise
        job.progress.say(f"warning: {job.out / name}: {e.strerror or e}; training goes on, the file before is kept")


def _refresh_batches(job: Job, model: nn.Module) -> Iterable[Tensor]:
    """Augmented training images of the epoch after the last, in batches of the training size."""
    steps = max(1, min(job.steps_per_epoch, REFRESH_IMAGES // job.batch_size))
    plan = draw_plan(job.config, job.num_train, -(-job.num_steps // job.steps_per_epoch))
    plan = plan.part(job.world.rank, job.world.size).steps(0, steps)
    return (x for x, _ in _until_stopped(job, job.executor.epoch(plan)))


def _until_stopped(job: Job, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, until a signal asks for an end: after the last step everything is saved already."""
    for batch in batches:
        if job.world.size == 1 and (signal := job.stop()):
            raise Interrupted(signal)
        yield batch


def _finish(job: Job, state: State) -> Result:
    """Averages, refreshes, measures and writes."""
    config, watch = job.config, job.watch
    final, has_tail = state.model, state.mean.count > 0
    if has_tail:
        with watch("swa"), autocast(job.machine):
            final = state.mean.averaged(state.model)
            final._compiled_call_impl = None
            refresh_batch_norm(final, _refresh_batches(job, final))
    watch.time_s["eval_final"] = -watch.so_far("eval")
    with watch("eval"):
        plain, best = _accuracies(job, final, job.test, config.tta, may_stop=True)
    watch.time_s["eval_final"] += watch.so_far("eval")
    raw = state.history[-1].get("accuracy_test")  # the last epoch's, unless that one looked at held-out images
    with watch("eval"):
        if raw is None:
            raw = plain if final is state.model else _accuracies(job, state.model, job.test, may_stop=True)[0]
    averaged = plain if has_tail else None
    with_views = best if config.tta != "none" else None
    accuracy = next(a for a in (with_views, averaged, raw) if a is not None)
    summary = _summary(job, state, accuracy, raw, averaged, with_views)
    result = Result(final, summary, state.history, state.schedule)
    if job.out and job.world.leads:
        write_model(job.out / "model.safetensors", job, result)
    return result


def write_model(path: Path, job: Job, result: Result) -> None:
    """The weights the run stands for, with what a reader of images needs: class names and normalisation."""
    data, config = job.dataset, job.config
    facts = {
        "classes": data.classes, "mean": data.mean, "std": data.std, "dataset": data.name, "network": config.network,
        "norm": config.norm, "activation": config.activation, "scale": job.machine.scale,
        "accuracy": result.summary["accuracy"],
    }  # fmt: skip
    record.write_model(path, result.model, facts)


def _summary(
    job: Job, state: State, accuracy: float, raw: float, swa: float | None, tta: float | None
) -> dict[str, Any]:
    config, machine, watch = job.config, job.machine, job.watch
    skipped = 0
    if machine.precision == "fp16":
        skipped = skipped_steps(state.scaler.get_scale())
    return {
        "dataset": job.dataset.name, "n_train": job.num_train, "n_test": len(job.dataset.y_test),
        "recipe": config.recipe, "scale": machine.scale, "epochs": config.extend_epochs or config.epochs,
        "num_steps": job.num_steps, "seed": config.seed, "accuracy": accuracy, "accuracy_raw": raw,
        "accuracy_swa": swa, "accuracy_tta": tta, "loss_last": state.history[-1]["loss_train"],
        "swa_recorded": state.mean.count, "steps_skipped_fp16": skipped,
        "time_s": {**watch.report(), "eval_final": round(watch.time_s["eval_final"], 4)},
        "images_per_s": round(job.num_steps * job.batch_size / max(watch.time_s["train"], 1e-9), 1),
        "train_pflop": job.train_pflop,
        "peak_mem_mib": record.peak_mem_mib(machine.device), "device": machine.name, "precision": machine.precision,
        "compile": machine.compile, "augment": machine.augment, "processes": job.world.size,
        "deterministic": config.deterministic, "versions": record.versions(), **record.source_state(),
        "config": asdict(config),
    }  # fmt: skip
