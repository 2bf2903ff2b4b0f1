"""The observers that write a run's own folder: one list for the command line and for Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fastcifar.augment.plan import image_size
from fastcifar.runs import plots, record
from fastcifar.runs.checkpoints import Checkpoints
from fastcifar.runs.model_file import ModelFile
from fastcifar.runs.observers import Observer
from fastcifar.runs.profiling import Profile
from fastcifar.runs.step_work import step_work
from fastcifar.runs.trackers import make_tracker
from fastcifar.training import processes
from fastcifar.training.stopwatch import process_age_s
from fastcifar.training.task import Task, normalization_facts, plain_network


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
        chosen.append(profile_of(task, out))
    return [
        record.Metrics(out / "metrics.jsonl"),
        Checkpoints(out / "checkpoint.pt", task.config, task.dataset.digest, stop, agree),
        ModelFile(out / "model.safetensors", normalization_facts(task)),
        record.Summary(out / "summary.json", process_age_s),
        plots.Curves(out / "curves.png"),  # after the figures: without a picture nothing is lost
        *chosen,
    ]


def profile_of(task: Task, out: Path) -> Profile:
    """The profile of a run, at the image size of most of its epochs, the larger one of two."""
    epochs = range(-(-task.num_steps // task.steps_per_epoch))
    sizes = [image_size(task.config, epoch) for epoch in epochs]
    size_px = max(Counter(sizes).items(), key=lambda item: (item[1], item[0]))[0]
    batch = task.batch_size // task.world.size
    return Profile(
        out,
        after_step=sizes.index(size_px) * task.steps_per_epoch,
        heading=f"{batch} images of {size_px} pixels, {task.hardware.precision}",
        work=lambda: step_work(plain_network(task), batch, size_px, muon=task.config.optimizer.name == "muon"),
    )
