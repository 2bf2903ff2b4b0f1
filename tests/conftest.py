"""What several tests share: a set of a few images, a network of a few channels, a run that ends in a second."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastcifar import machine, model
from fastcifar.config import Config
from fastcifar.data import Dataset
from fastcifar.job import Job, prepare
from fastcifar.progress import Lines

torch.set_num_threads(1)  # the tests' networks are tiny: threads would only wait for each other, on a busy machine long

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


PLAIN: dict[str, Any] = {
    "optimizer": "sgd", "lr_peak": 1.0, "momentum": 0.9, "weight_decay": 5e-4, "bias_lr_scale": 1.0,
    "head_lr_scale": 1.0, "label_smoothing": 0.1, "low_res_px": 32, "low_res_until": 0.0, "pct_start": 0.3,
    "momentum_min": 0.85, "momentum_max": 0.95, "anneal_strategy": "cos", "div_factor": 25.0, "swa_lr": 0.2,
    "swa_every": None, "tta": "none", "tta_share": 1.0, "activation": "relu", "crop_pad_px": 2,
}  # fmt: skip
"""Nesterov SGD and torch's own OneCycle: a recipe that is tuned anew changes no test of the machinery."""


def make_config(**knobs: Any) -> Config:
    return Config(**PLAIN | knobs)


class Recorder(Lines):
    """Keeps what a run says, and knows which step it is at."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def step(self, step: int) -> None:
        self.now = step


def make_dataset(n_train: int = 256, n_test: int = 80, seed: int = 0) -> Dataset:
    """Noise with a patch whose colour tells the class: learnable within a few steps."""
    random = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(0, 256, (len(CLASSES), 3))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % len(CLASSES)
        images = random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        images[:, 8:24, 8:24] = colours[labels][:, None, None]
        return images, labels

    return Dataset("synthetic", CLASSES, *draw(n_train), *draw(n_test), (0.5,) * 3, (0.25,) * 3, f"digest of {seed}")


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network with 8 channels, so that a step takes milliseconds."""
    monkeypatch.setitem(model.WIDTHS, "small", (8, 8, 8, 8))


@pytest.fixture
def make_job(tiny_network: None, dataset: Dataset) -> Callable[..., Job]:
    """Job of a run on the CPU; keywords are Config fields, save `data_set`, `out` and `stop`, which are Job's."""

    def make(data_set: Dataset = dataset, out: Any = None, **knobs: Any) -> Job:
        plain: dict[str, Any] = {
            "device": "cpu", "precision": "fp32", "scale": "small", "compile": "off", "augment": "torch",
            "batch_size": 32, "lr_peak": 0.5, "epochs": 3, "checkpoint_every": 1,
        }  # fmt: skip
        config = make_config(**plain | knobs)
        return prepare(config, data_set, machine.choose(config), progress=Recorder(), out=out)

    return make


@pytest.fixture
def exact_fp32():
    """fp32 products and convolutions on a card in fp32, not in TF32, for the length of a test."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def deterministic():
    """Deterministic algorithms for the length of a test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
