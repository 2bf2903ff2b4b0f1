"""fastcifar: train a CIFAR-10 network to 94% in few passes over the data, and keep what was trained.

    import fastcifar
    result = fastcifar.train("speedrun94", epochs=10)
    names, probabilities = result.model.predict(images)

The names below are imported when they are first used, so that importing the package takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcifar.api import Result, evaluate, fit, train
    from fastcifar.augment.loader import Loader
    from fastcifar.config.config import Config
    from fastcifar.config.recipes import RECIPES
    from fastcifar.data.dataset import Dataset
    from fastcifar.data.load import load as load_data
    from fastcifar.inference.classifier import Classifier, load
    from fastcifar.inference.export import export
    from fastcifar.inference.trained_run import swag_models
    from fastcifar.training.observer import Observer, Stop
    from fastcifar.training.state import Diverged

__version__ = "0.2.0"
__all__ = [
    "RECIPES", "Classifier", "Config", "Dataset", "Diverged", "Loader", "Observer", "Result", "Stop", "evaluate",
    "export", "fit", "load", "load_data", "swag_models", "train",
]  # fmt: skip
_HOMES = {
    "Classifier": "inference.classifier", "Config": "config.config", "Dataset": "data.dataset",
    "Diverged": "training.state", "Loader": "augment.loader", "Observer": "training.observer",
    "RECIPES": "config.recipes", "Result": "api", "Stop": "training.observer", "evaluate": "api",
    "export": "inference.export", "fit": "api", "load": "inference.classifier", "load_data": "data.load:load",
    "swag_models": "inference.trained_run", "train": "api",
}  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    module, _, name_there = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"fastcifar.{module}"), name_there or name)
