"""Training from Python: `fastcifar.train`, `fastcifar.fit` and `fastcifar.evaluate`. Nothing is printed.

Settings have the names of their flags. A wrong argument raises ValueError with the text that the command line shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from fastcifar.config import Config
from fastcifar.data.arrays import dataset_from_arrays
from fastcifar.data.dataset import Dataset
from fastcifar.data.files import lock_folder
from fastcifar.data.load import load as load_dataset
from fastcifar.recipes import find_recipe, with_optimizer
from fastcifar.runs import folder
from fastcifar.runs.classifier import Classifier
from fastcifar.runs.observers import Observer, Progress
from fastcifar.runs.observers import Result as LoopResult
from fastcifar.settings import with_settings
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train as train_loop
from fastcifar.training.run_files import run_observers
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import load_data, make_task

Hook = Callable[[int, dict[str, Any]], object]


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


class _Hooks(Observer):
    """Calls plain functions with (step, {}) after each step and (epoch, metrics row) after each epoch."""

    def __init__(self, on_step: Hook | None, on_epoch: Hook | None) -> None:
        self.step_hook, self.epoch_hook = on_step, on_epoch

    def on_step(self, run: Progress) -> None:
        if self.step_hook:
            self.step_hook(run.step, {})

    def on_epoch(self, run: Progress, row: dict[str, Any]) -> None:
        if self.epoch_hook:
            self.epoch_hook(row["epoch"], row)


def train(
    recipe: str | Config = "swa30",
    *,
    data: str | Path | Dataset | None = None,
    out: str | Path | None = None,
    on_step: Hook | None = None,
    on_epoch: Hook | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Result:
    """Trains a model.

    Args:
        recipe: name of a recipe, or a Config.
        data: "cifar10", "cifar100", "synthetic", a path (see --data) or a `Dataset`; by default that of the config.
        out: run folder to write; None writes nothing.
        on_step: called with (step, {}) after each step; it must be quick.
        on_epoch: called with (epoch, metrics row) after each epoch.
        observers: objects with `on_step`, `on_epoch` and `on_end` (`fastcifar.runs.observers.Observer`).
        settings: any setting by the name of its flag, such as `epochs=10` or `lr_peak=0.1`. `deterministic=True`
            turns torch's deterministic algorithms on for the rest of the process.

    Raises:
        ValueError: a setting is unknown, wrong or without effect, or the data cannot be read.
        Diverged: the loss is not finite, or the accuracy stays at chance.
    """
    config = _config(recipe, settings)
    if isinstance(data, (str, Path)):
        config = with_settings(config, data=str(data))
    if out is not None:
        config = with_settings(config, out=str(out))
    elif config.run.log != "none" or config.run.profile:
        raise ValueError("log and profile need a run folder: give out")
    config, hardware = resolve(config)
    stopwatch = Stopwatch(hardware.device)
    with stopwatch("data"):
        dataset = data if isinstance(data, Dataset) else load_data(config, progress=False)
        task = make_task(config, dataset, hardware)
    watching = [_Hooks(on_step, on_epoch), *observers]
    if out is None:
        result, path = train_loop(task, watching, stopwatch), None
    else:
        path = folder.choose(config)
        with lock_folder(path):
            folder.claim(path, config)
            result = train_loop(task, [*watching, *run_observers(task, path)], stopwatch)
            folder.require_kept(path)
    return _result(result, dataset, path)


def fit(
    images: ArrayLike,
    labels: ArrayLike,
    test: tuple[ArrayLike, ArrayLike],
    classes: Sequence[str] | None = None,
    recipe: str | Config = "swa30",
    **arguments: Any,
) -> Result:
    """Trains a model on arrays: uint8 images [N, H, W, C] of 24 to 64 pixels, 1 or 3 channels, labels [N] in 0..K-1.

    test: (images, labels) that the accuracy is measured on. `arguments`: as for `train`. Raises ValueError for arrays
    of another dtype or shape.
    """
    return train(recipe, data=dataset_from_arrays(images, labels, *test, classes=classes), **arguments)


def evaluate(
    model: Classifier, data: str | Path | Dataset | tuple[ArrayLike, ArrayLike], views: bool = True
) -> dict[str, float]:
    """Accuracy and cross-entropy (nats) of a model on the test images of a data set, or on (images, labels).

    Raises ValueError when the data cannot be read, or has a label that the model does not know.
    """
    if isinstance(data, tuple):
        images, labels = data
    else:
        dataset = data if isinstance(data, Dataset) else load_dataset(str(data), progress=False)
        images, labels = dataset.x_test, dataset.y_test
    logits, target = model.logits(images, views), torch.as_tensor(labels).long()
    if len(target) != len(logits) or not len(target):
        raise ValueError(f"{len(logits)} images and {len(target)} labels; expected one label per image, and some")
    if not 0 <= int(target.min()) <= int(target.max()) < len(model.classes):
        raise ValueError(f"a label is {int(target.max())}; the model knows 0..{len(model.classes) - 1}")
    right = (logits.argmax(1) == target).float().mean().item()
    return {"accuracy": right, "loss": F.cross_entropy(logits, target).item()}


def _config(recipe: str | Config, settings: dict[str, Any]) -> Config:
    if isinstance(recipe, str):
        recipe = find_recipe(recipe)
    if "optimizer" in settings:
        recipe = with_optimizer(recipe, settings["optimizer"])
    for name in ("runs", "resume", "plot_schedule", "dry_run", "parallel", "keep_all"):
        if name in settings:
            raise ValueError(f"{name} is for the command line; it does not go with a training from Python")
    return with_settings(recipe, **settings)


def _result(result: LoopResult, dataset: Dataset, path: Path | None) -> Result:
    network = result.model.to("cpu")
    classifier = Classifier(network, dataset.classes, dataset.mean, dataset.std).eval()
    return Result(classifier, result.summary["accuracy"], result.history, result.summary, path)
