"""What several tests share: a set of a few images, a network of a few channels, a run that ends in a second."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it; of every process that a test starts, too

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from real_images import REAL

from fastcifar.cli import main as entry
from fastcifar.cli import train as command
from fastcifar.cli.terminal import Handler, route_log_to
from fastcifar.config.config import Augment, Config, Machine, Model, Optimizer, Tail
from fastcifar.config.schedules import OneCycle
from fastcifar.config.settings import with_all_settings, with_settings
from fastcifar.config.shapes import SHAPES
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load
from fastcifar.models import shake
from fastcifar.observers.progress import Lines
from fastcifar.runs import plots
from fastcifar.training.hardware import resolve
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer, RunOutcome, RunView
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, make_task

torch.set_num_threads(1)  # the tests' networks are tiny: threads would only wait for each other, on a busy machine long


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of an `xdist_group` in one process: pytest 9.2 no longer reads what pytest-xdist 3.8 writes."""
    for item in items:
        node: Any = item
        if (grouped := vars(item).get("_nodeid", item.nodeid)) != item.nodeid:
            node._id = type(node._id).parse(grouped)
        if getattr(config.option, "loadgroup", False) and item.get_closest_marker("xdist_group"):
            assert "@" in item.nodeid, "this version of pytest-xdist or pytest scatters the tests of a group"


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PLAIN = Config(
    epochs=30,
    augment=Augment(crop_pad_px=2, mirror="alternating"),
    optimizer=Optimizer(name="sgd", batch_size=500, momentum=0.9, weight_decay=5e-4, label_smoothing=0.1),
    schedule=OneCycle(peak=1.0),
    tail=Tail(start=2 / 3, lr=0.2),
)
"""Nesterov SGD and torch's own OneCycle: a recipe that is tuned anew changes no test of the machinery."""

QUICK = replace(
    with_settings(PLAIN, batch_size=32, lr_peak=0.5, epochs=3, checkpoint_every=1),
    model=Model(scale="small"),
    machine=Machine(device="cpu", precision="fp32", compile="off", executor="torch"),
)
"""Ends in a second on the CPU."""


def task_of(config: Config, dataset: Dataset) -> Task:
    """The task of a config as it is trained here."""
    before = torch.are_deterministic_algorithms_enabled()
    config, hardware = resolve(config)
    if torch.are_deterministic_algorithms_enabled() != before:  # a run turns them on for the rest of its process
        torch.use_deterministic_algorithms(before)
    return make_task(config, dataset, hardware)


def make_config(**settings: Any) -> Config:
    """`PLAIN` with other settings, by flag."""
    return with_all_settings(PLAIN, settings)[0]


class Recorder(Lines):
    """Keeps what a run prints, and knows which step it is at."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_step(self, run: RunView) -> None:
        self.now = run.step


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


DRAW_CURVES = plots.draw_curves


@pytest.fixture(scope="session", autouse=True)
def no_curves() -> Iterator[None]:
    """Runs in folders draw nothing: a picture takes longer than a run."""
    plots.draw_curves = processes.no_curves
    yield
    plots.draw_curves = DRAW_CURVES


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their curves in this test."""
    monkeypatch.setattr(plots, "draw_curves", DRAW_CURVES)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return os.environ.get("FASTCIFAR_TEST_CACHE") or str(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def real(real_cache: str) -> Dataset:
    """CIFAR-10, for tests with the marks `needs_real_images`."""
    return load(str(REAL), cache_dir=real_cache, progress=False)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network with 8 channels, others with one block per stage, so that a step takes milliseconds."""
    monkeypatch.setitem(SHAPES, "small", replace(processes.TINY, stem=8))
    monkeypatch.setattr(shake, "DEPTH", 1)


@pytest.fixture
def make_quick_task(tiny_network: None, dataset: Dataset) -> Callable[..., Task]:
    """Task of a run on the CPU; keywords are settings by flag, save `data_set`."""

    def make(data_set: Dataset = dataset, **settings: Any) -> Task:
        config, command = with_all_settings(QUICK, settings)
        return replace(task_of(config, data_set), command=command)

    return make


class FakeSignals(Observer):
    """Stands in for Signals: `stop` says which signal has arrived, if any."""

    def __init__(self, stop: Callable[[], int | None]) -> None:
        self.stop = stop

    def __call__(self) -> int | None:
        return self.stop()


def train_in_folder(
    task: Task, out: Path | None = None, stop: Callable[[], int | None] = lambda: None, progress: Recorder | None = None
) -> RunOutcome:
    """Trains as the command line does, with the files of the run in `out` and what it prints in `progress`."""
    signals: Any = FakeSignals(stop)
    with route_log_to(progress or Recorder()) as recorder:
        return train(task, [recorder, *command.observers_of(task, out, signals)], Stopwatch(task.hardware.device))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Messages of the fastcifar logger."""
    with route_log_to(Recorder()) as recorder:
        yield recorder.lines  # type: ignore[attr-defined]
    assert not any(isinstance(handler, Handler) for handler in logging.getLogger("fastcifar").handlers)


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


# The command line


@pytest.fixture
def here(tmp_path, tmp_path_factory, monkeypatch, tiny_network):
    """Runs are made in a folder of their own, on one thread, and leave nothing behind in this process or the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path_factory.getbasetemp() / "cache of decoded images"))
    monkeypatch.setattr("sys.argv", ["train_fast.py"])
    rate = lambda device, dtype: 1e11  # noqa: E731  # measured, it takes as long as some epochs of these runs
    monkeypatch.setattr(command, "matrix_flop_per_s", rate, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Flags of a run of two epochs of eight steps."""
    below = tmp_path_factory.mktemp("images")
    images = processes.write_images(below / "x.npz")
    return [*processes.FLAGS, "--data", str(images), "--cache-dir", str(below), "--epochs", "2", "--swa-start", "0.5"]


@pytest.fixture
def call(capfd):
    """Exit code, lines of stdout, lines of stderr."""

    def main(*argv):
        code = entry.train(list(argv))
        said = capfd.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return main
