"""Training from Python: `fastcifar.train`, `fastcifar.fit` and `fastcifar.evaluate`.

Nothing is printed unless `progress` asks for it. Settings have the names of their flags. A wrong argument
raises ValueError with the text that the command line shows.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from fastcifar.config.command import Command
from fastcifar.config.config import Config, Model
from fastcifar.config.recipes import find_recipe
from fastcifar.config.schedules import Schedule
from fastcifar.config.settings import SETTINGS, method_differences, with_all_settings, with_optimizer
from fastcifar.data.checks import check_labels
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load as load_dataset
from fastcifar.data.load import load_of
from fastcifar.files import lock_folder
from fastcifar.inference.classifier import Classifier
from fastcifar.inference.hub_folder import Material
from fastcifar.inference.trained_run import require_classes
from fastcifar.models.own_network import Network
from fastcifar.observers.progress import make_display
from fastcifar.observers.run_files import file_observers, measured, normalization_facts
from fastcifar.observers.trackers import require_tracker
from fastcifar.runs import folder
from fastcifar.runs.config_file import ConfigFileError, load_config
from fastcifar.runs.model_file import digest_of
from fastcifar.runs.results import RunResults, check_summary
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train as train_loop
from fastcifar.training.observer import Observer, RunOutcome
from fastcifar.training.parts import Loss, MakeOptimizer, Parts, Transform, kind_of
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, make_task

Source = str | os.PathLike[str] | Dataset


@dataclass(frozen=True)
class Result:
    """Outcome of a training."""

    model: Classifier
    """The trained model: `predict` and `logits` take uint8 images."""
    accuracy: float
    """Test accuracy that the run stands for, a fraction in [0, 1]."""
    history: list[dict[str, Any]]
    """A row per epoch, as in metrics.jsonl."""
    summary: dict[str, Any]
    """Contents of summary.json: all accuracies, seconds per phase, versions, settings."""
    folder: Path | None
    """Run folder; None when nothing was written."""


def train(
    recipe: str | Config = "swa30",
    *,
    data: Source | None = None,
    out: str | Path | None = None,
    network: str | Network | None = None,
    optimizer: str | MakeOptimizer | None = None,
    loss: Loss | None = None,
    transform: Transform | None = None,
    schedule: str | Schedule | None = None,
    observers: Sequence[Observer] = (),
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Trains a model.

    Args:
        recipe: name of a recipe, or a Config.
        data: "cifar10", "cifar100", "synthetic", a path (see --data) or a `Dataset`; by default that of the config.
            The synthetic images are never taken in place of missing ones: ask for them by name.
        out: run folder to write; None writes nothing. `resume=RUN` goes on with a run folder; give it the arguments
            that began the run.
        network: a module, or a function that makes one: x [B, 3, 32, 32], normalised -> logits [B, K]; or a name.
        optimizer: a function from parameters to an optimizer, whose rates the schedule scales; or a name.
        loss: (logits [B, K] f32, y) -> scalar; y is [B] int64, or what `transform` makes of it.
        transform: (x, y) -> (x, y), on each augmented batch, on the device: mixup, cutmix.
        schedule: a `fastcifar.config.schedules.Schedule`, or a name.
        observers: what watches the run: objects with `on_step`, `on_epoch` and `on_end`
            (`fastcifar.training.observer.Observer`).
        progress: shows a bar and a line per epoch in a notebook and on a terminal, the lines alone elsewhere.
        settings: any setting by the name of its flag, such as `epochs=10` or `lr_peak=0.1`. `deterministic=True`
            turns torch's deterministic algorithms on for the rest of the process.

    Raises:
        TypeError: data is none of these.
        ValueError: a setting is unknown, wrong or without effect, or the data cannot be read.
        Diverged: the loss is not finite, or the accuracy stays at chance.
    """
    if data is not None and not isinstance(data, Dataset):
        settings["data"] = _source(data)
    if isinstance(data, Dataset) and (given := [name for name in ("subset", "test_split") if settings.get(name)]):
        raise ValueError(f"{given[0]} has no effect on a Dataset or on arrays: cut them before")
    settings |= {name: os.fspath(settings[name]) for name in ("resume", "init") if settings.get(name) is not None}
    if out is not None:
        settings["out"] = str(out)
    config, command, parts = _config_and_parts(recipe, settings, network, optimizer, loss, transform, schedule)
    config, hardware = resolve(config)
    if command.resume is not None:
        config = _as_begun(config, Path(command.resume))
    folder.check(config, command)
    stopwatch = Stopwatch(hardware.device)
    with stopwatch("data"):
        dataset = data if isinstance(data, Dataset) else load_of(config, progress=False, or_synthetic=False)
        task = make_task(config, dataset, hardware, parts=parts, command=command)
    if not progress:
        return _train(task, observers, stopwatch)
    with contextlib.closing(make_display(config, task.num_steps)) as display:
        return _train(task, [display, *observers], stopwatch)


def _as_begun(config: Config, run: Path) -> Config:
    """The config of a call that resumes a run, with the run's extension. ValueError where it is not that run's."""
    try:
        saved = load_config(run / "config.json", own=config.schedule)
    except ConfigFileError:  # there is none, or it has another schedule from Python: the checkpoint is compared, too
        return config
    if changed := method_differences(saved, config):
        raise ValueError(f"resume={run}: this call has other settings than the run ({'; '.join(changed)[:300]}); give "
                         "the arguments that began the run")  # fmt: skip
    extension = config.run.extend_epochs or saved.run.extend_epochs
    return replace(config, run=replace(config.run, extend_epochs=extension))


def _train(task: Task, observers: Sequence[Observer], stopwatch: Stopwatch) -> Result:
    """Trains the task, with a run folder where its command names one."""
    if task.command.out is None and task.command.resume is None:
        return _result(train_loop(task, observers, stopwatch), task, None)
    path = folder.choose(task.config, task.command, task.dataset.name)
    with lock_folder(path):
        folder.claim(path, task.config, task.command)
        result = train_loop(task, [*observers, *file_observers(task, path)], stopwatch)
        folder.require_kept(path)
    return _result(result, task, path)


def fit(
    images: ArrayLike,
    labels: ArrayLike,
    test: tuple[ArrayLike, ArrayLike] | float,
    classes: Sequence[str] | None = None,
    recipe: str | Config = "swa30",
    **arguments: Any,
) -> Result:
    """Trains a model on arrays: images and labels as `Dataset.from_arrays` takes them.

    test: (images, labels) that the accuracy is measured on, or the fraction of each class that is kept for that.
    `arguments`: as for `train`. Raises ValueError for arrays
    of another dtype or shape.
    """
    if not isinstance(test, (int, float)) and not (isinstance(test, (tuple, list)) and len(test) == 2):
        raise ValueError(f"test is a {type(test).__name__}; give (images, labels), or the fraction that is kept for it")
    if isinstance(test, (int, float)):
        dataset = Dataset.from_arrays(images, labels, test_split=test, classes=classes)
    else:
        dataset = Dataset.from_arrays(images, labels, *test, classes=classes)
    return train(recipe, data=dataset, **arguments)


def evaluate(
    model: Classifier,
    data: Source | tuple[ArrayLike, ArrayLike],
    views: bool | str = True,
    share: float = 1.0,
    test_split: float = 0.0,
) -> dict[str, float]:
    """Accuracy and cross-entropy (nats) of a model on the test images of a data set, or on (images, labels).

    test_split: fraction of each class that becomes the test images of a path without any, as in the training. views,
    share: as for `Classifier.logits`; with the `tta` and `tta_share` of a run in fp32 the accuracy is its own.
    Raises TypeError when `data` is none of these, ValueError when the data cannot be read, a data set has other classes
    than the model, or a label is none of the model's.
    """
    if isinstance(data, tuple):
        images, labels = data
    else:
        dataset = data
        if not isinstance(dataset, Dataset):
            dataset = load_dataset(_source(dataset), test_split=test_split, progress=False, or_synthetic=False)
        require_classes(dataset, model)
        images, labels = dataset.x_test, dataset.y_test
    logits = model.logits(images, views, share)
    target = torch.from_numpy(check_labels("evaluate", labels, classes=model.classes))
    if len(target) != len(logits) or not len(target):
        raise ValueError(f"{len(logits)} images and {len(target)} labels; expected one label per image, and some")
    if not 0 <= int(target.min()) <= int(target.max()) < len(model.classes):
        raise ValueError(f"a label is {int(target.max())}; the model knows 0..{len(model.classes) - 1}")
    right = int((logits.argmax(1) == target).sum())
    return {"accuracy": right / len(target), "loss": F.cross_entropy(logits, target).item()}


def _source(data: str | os.PathLike[str]) -> str:
    """The name or path of a data set. TypeError for anything else: else `auto` would take its place in silence."""
    if not isinstance(data, (str, os.PathLike)):
        raise TypeError(
            f"data is a {type(data).__name__}; give a name, a path or a Dataset, or arrays to fastcifar.fit"
        )
    return os.fspath(data)


_REPLACED = {
    "network": [f.name for f in fields(Model)],
    "optimizer": [
        "momentum",
        "weight_decay",
        "bias_lr_scale",
        "head_lr_scale",
        "momentum_min",
        "momentum_max",
        "cool_first_stage",
        "lr_peak",
    ],
    "loss": ["label_smoothing"],
}
"""Settings that have no effect where a part comes from Python."""


def _config_and_parts(
    recipe: str | Config,
    settings: dict[str, Any],
    network: str | Network | None,
    optimizer: str | MakeOptimizer | None,
    loss: Loss | None,
    transform: Transform | None,
    schedule: str | Schedule | None,
) -> tuple[Config, Command, Parts]:
    """The config that names the parts from Python, the command, and these parts. A part that is a name is a setting."""
    settings = dict(settings)
    if isinstance(schedule, type) or not isinstance(schedule, (Schedule, str, type(None))):
        raise ValueError(f"schedule is {kind_of(schedule)}; give a name, or a value such as Cosine(peak=0.1) or "
                         "PerStep(peak=0.1, factor=a function of the step)")  # fmt: skip
    own_schedule, schedule = (schedule, None) if isinstance(schedule, Schedule) else (None, schedule)
    for name, value in (("network", network), ("optimizer", optimizer), ("schedule", schedule)):
        if value is not None and not callable(value):
            settings[name] = value
    parts = Parts(
        network if callable(network) else None, optimizer if callable(optimizer) else None, loss, transform
    )  # fmt: skip
    config, command = _config_and_command(recipe, settings, own_schedule)
    for part, names in _REPLACED.items():
        if getattr(parts, part) is not None and (given := [name for name in names if name in settings]):
            raise ValueError(f"{given[0]} has no effect here: the {part} comes from Python")
    require_tracker(command.log)
    if command.out is None and command.resume is None and (command.log != "none" or command.profile):
        raise ValueError("log and profile need a run folder: give out")
    return replace(config, from_python=parts.names), command, parts


def _config_and_command(
    recipe: str | Config, settings: dict[str, Any], schedule: Schedule | None
) -> tuple[Config, Command]:
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    if "optimizer" in settings:
        recipe = with_optimizer(recipe, settings["optimizer"])
    if schedule is not None:  # after the rates that suit the optimizer: those of the schedule are the caller's
        recipe = replace(recipe, schedule=schedule)
    for name in settings:
        if name in SETTINGS and not SETTINGS[name].field.metadata.get("in_python", True):
            raise ValueError(f"{name} is for the command line; it does not go with a training from Python")
    return with_all_settings(recipe, settings)


def _result(result: RunOutcome, task: Task, path: Path | None) -> Result:
    network, dataset = result.model.to("cpu"), task.dataset
    classifier = Classifier(network, dataset.classes, dataset.mean, dataset.std).eval()
    run = RunResults(path or Path("model"), task.config, [], check_summary(Path("summary.json"), result.summary))
    facts = {**normalization_facts(task), **measured(result.summary)}
    classifier.origin = Material(run, facts, digest=digest_of(network))
    return Result(classifier, result.summary["accuracy"], result.history, result.summary, path)
