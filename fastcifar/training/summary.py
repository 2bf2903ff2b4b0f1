"""What a run says of itself when it ends: the contents of summary.json."""

import math
from dataclasses import dataclass
from typing import Any

from fastcifar.runs import environment
from fastcifar.runs.config_file import config_to_plain
from fastcifar.training.state import FIRST_LOSS_SCALE, State
from fastcifar.training.task import Task


@dataclass(frozen=True)
class Accuracies:
    """Test accuracies of a run, fractions in [0, 1]; None for what the run does not have."""

    raw: float
    """Of the last weights."""
    averaged: float | None
    """Of the averaged weights."""
    with_views: float | None
    """Of the averaged weights (or the last ones without a tail), with test-time views."""

    @property
    def one_view(self) -> float:
        """Of the weights that are kept, from each image alone: what an exported file gives."""
        return self.raw if self.averaged is None else self.averaged

    @property
    def final(self) -> float:
        """The figure that the run stands for: with views, else of the averaged weights, else of the last ones."""
        return next(a for a in (self.with_views, self.averaged, self.raw) if a is not None)


def summarize(task: Task, state: State, accuracies: Accuracies, facts: dict[str, Any]) -> dict[str, Any]:
    """The contents of summary.json: everything a reader is promised. `facts`: those of `Prepared`."""
    config, hardware, stopwatch = task.config, task.hardware, state.stopwatch
    skipped = skipped_steps(state.scaler.get_scale()) if state.scaler.is_enabled() else 0
    return {
        "dataset": task.dataset.name, "n_train": task.num_train, "n_test": len(task.dataset.y_test),
        "n_resized": task.dataset.resized,
        "recipe": config.run.recipe, "scale": config.model.scale, "stopped": state.stopped,
        "epochs": state.step / task.steps_per_epoch if state.stopped else config.final_epochs,
        "num_steps": state.step, "seed": config.seed, "accuracy": accuracies.final,
        "accuracy_raw": accuracies.raw, "accuracy_swa": accuracies.averaged, "accuracy_tta": accuracies.with_views,
        "accuracy_one_view": accuracies.one_view, "views": config.evaluation.views,
        "loss_last": state.history[-1]["loss_train"], "swa_recorded": state.average.count,
        "steps_skipped_fp16": skipped, "time_s": stopwatch.report(),
        "images_per_s": round(state.step * task.batch_size / max(stopwatch.time_s["train"], 1e-9), 1),
        "train_pflop": task.pflop(state.step), "peak_mem_mib": environment.peak_mem_mib(hardware.device),
        "device": environment.device_name(hardware.device), "precision": config.machine.precision, **facts,
        "augment": config.machine.executor, "processes": task.world.size, "deterministic": config.machine.deterministic,
        "versions": environment.versions(), **environment.source_state(), "config": config_to_plain(config),
    }  # fmt: skip


def skipped_steps(scale: float) -> int:
    """Number of steps that fp16 overflow has skipped, from the loss scale. At 0 it fell below the least f32, 2^-149."""
    return round(math.log2(FIRST_LOSS_SCALE / (scale or 2.0**-150)))
