"""The observers that write a run's own folder: one list for the command line and for Python."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.observers.checkpoints import Checkpoints
from fastcifar.observers.kernel_groups import step_work
from fastcifar.observers.profiling import Profile
from fastcifar.observers.trackers import make_tracker
from fastcifar.runs import folder, plots, record
from fastcifar.runs.model_file import FROM_PYTHON, SWAG_FILE, write_model
from fastcifar.training import processes
from fastcifar.training.observer import Observer, RunOutcome, RunView
from fastcifar.training.stopwatch import process_age_s
from fastcifar.training.task import Task

log = logging.getLogger("fastcifar")


def file_observers(task: Task, out: Path | None, signal: Callable[[], int | None] = lambda: None) -> list[Observer]:
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
    command, chosen = task.command, list[Observer]()
    if command.log != "none":
        chosen.append(make_tracker(task.config, command, out))
    if command.profile:
        chosen.append(profile_of(task, out))
    resumed = [KeptSettings(out, task.config)] if command.resume else []
    return [
        *resumed,
        Metrics(out / "metrics.jsonl"),
        Checkpoints(out / "checkpoint.pt", task.config, task.dataset.digest, stop, agree),
        ModelFile(out / "model.safetensors", normalization_facts(task)),
        Summary(out / "summary.json", process_age_s),
        Curves(out / "curves.png", task.config),  # after the figures: without a picture nothing is lost
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
        heading=f"{batch} images of {size_px} pixels, {task.config.machine.precision}",
        work=lambda: step_work(task.network, batch, size_px, muon=task.config.optimizer.name == "muon"),
    )


class KeptSettings(Observer):
    """Writes the settings of a resumed run into its config.json, once it has gone on or ended."""

    def __init__(self, out: Path, config: Config) -> None:
        self.out, self.config = out, config
        self.written = False

    def on_step(self, run: RunView) -> None:
        self._write()

    def on_end(self, result: RunOutcome) -> None:
        self._write()

    def _write(self) -> None:
        if not self.written:
            self.written = True
            path = self.out / "config.json"
            record.warn_if_unwritten(path, lambda: folder.keep_settings(self.out, self.config))


class Metrics(Observer):
    """Writes metrics.jsonl, a line per epoch.

    Without waiting for the disk: on a card an epoch takes a fifth of a second, and the checkpoint has the rows, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        """Writes the whole file, so that lines which a killed process wrote after its last checkpoint vanish."""
        record.warn_if_unwritten(self.path, lambda: record.write_lines(self.path, run.history, sync=False))

    def on_end(self, result: RunOutcome) -> None:
        record.warn_if_unwritten(self.path, lambda: record.write_lines(self.path, result.history))


class Summary(Observer):
    """Writes summary.json when the run ends, with the age of the process in seconds at two moments.

    `first_step`: when the first step of this process was queued, so all of the cold start. `wall`: at the end.
    """

    def __init__(self, path: Path, age_s: Callable[[], float]) -> None:
        self.path, self.age_s = path, age_s
        self.first_step_s: float | None = None

    def on_step(self, run: RunView) -> None:
        if self.first_step_s is None:
            self.first_step_s = self.age_s()

    def on_end(self, result: RunOutcome) -> None:
        result.summary["time_s"]["first_step"] = self.first_step_s and round(self.first_step_s, 4)
        result.summary["time_s"]["wall"] = round(self.age_s(), 4)
        record.write_json(self.path, result.summary)


class ModelFile(Observer):
    """Writes model.safetensors when the run ends, and swag.safetensors beside it where the run has one.

    facts: classes, mean, std, dataset and the network's settings.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts

    def on_end(self, result: RunOutcome) -> None:
        facts = {**self.facts, **measured(result.summary)}
        write_model(self.path, result.model, facts)
        if swag := result.swag:
            facts |= {"snapshots": swag.count}
            write_model(self.path.with_name(SWAG_FILE), result.model, facts, swag.gaussian())


def measured(summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of a summary that go into the file: of the run, of one view of each image, and how many views."""
    return {name: summary[name] for name in ("accuracy", "accuracy_one_view", "views")}


class Curves(Observer):
    """Draws curves.png when the run ends. A picture that fails is a warning."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    def on_end(self, result: RunOutcome) -> None:
        try:
            plots.draw_curves(self.path, result.history, result.schedule, result.summary, self.config)
        except Exception as e:  # matplotlib and a full disk raise almost anything; all figures are saved by now
            reason = (str(e).splitlines() or [""])[0][:120]
            log.warning("warning: %s: not drawn (%s: %s); the run is complete", self.path, type(e).__name__, reason)


def normalization_facts(task: Task) -> dict[str, Any]:
    """What a reader of the model file needs: class names, normalisation and the network's settings."""
    dataset, settings = task.dataset, task.config.model
    facts = {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std, "dataset": dataset.name}
    if task.parts.network is not None:
        kind = type(task.network)
        return {**facts, "network": FROM_PYTHON, "scale": f"{kind.__module__}.{kind.__qualname__}"}
    return {
        **facts, "network": settings.network, "norm": settings.norm, "activation": settings.activation,
        "scale": settings.scale, "shape": asdict(settings)["shape"],
    }  # fmt: skip
