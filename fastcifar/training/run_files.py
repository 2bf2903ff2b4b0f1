"""The observers that write a run's own folder: one list for the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastcifar.runs import plots, record
from fastcifar.runs.checkpoints import Checkpoints
from fastcifar.runs.model_file import ModelFile
from fastcifar.runs.observers import Observer
from fastcifar.runs.profiling import Profile
from fastcifar.runs.trackers import make_tracker
from fastcifar.training import processes
from fastcifar.training.stopwatch import process_age_s
from fastcifar.training.task import Task, normalization_facts


def run_observers(task: Task, out: Path | None, signal: Callable[[], int | None] = lambda: None) -> list[Observer]:
    """Checkpoints in every process of the run; the other files in the process that has the folder `out`.

    signal: gives the number of a signal that ends the run after the current step, or None.
    """
    world = task.world

    def stop(step: int) -> int | None:
        return processes.agree(signal(), world, step)

    def agree(value: int) -> int | None:
        return processes.agree(value, world)

    if out is None:
        return [Checkpoints(None, task.config, task.dataset.digest, stop, agree)]
    run, chosen = task.config.run, list[Observer]()
    if run.log != "none":
        chosen.append(make_tracker(task.config, out))
    if run.profile:
        chosen.append(Profile(out))
    return [
        record.Metrics(out / "metrics.jsonl"),
        Checkpoints(out / "checkpoint.pt", task.config, task.dataset.digest, stop, agree),
        ModelFile(out / "model.safetensors", normalization_facts(task)),
        record.Summary(out / "summary.json", process_age_s),
        plots.Curves(out / "curves.png"),  # after the figures: without a picture nothing is lost
        *chosen,
    ]
