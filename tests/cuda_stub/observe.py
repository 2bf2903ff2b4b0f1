"""Watches runs under the stub: what each step and each batch asks of the card, and in which layout it works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import subject
import torch
from stub import Card
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

card = Card()
CLASSES = tuple("0123456789")
TINY: dict[str, Any] = {"batch_size": 20, "epochs": 4.0, "augment": "torch", "compile": "off", "device": "cuda"}
"""Three steps an epoch of 60 images: what is counted does not depend on how many there are."""


def make_dataset(n_train: int = 60, n_test: int = 20) -> subject.Dataset:
    """Noise."""
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        return random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % len(CLASSES)

    return subject.Dataset("noise", CLASSES, *draw(n_train), *draw(n_test), (0.5,) * 3, (0.25,) * 3, "digest")


class Messages(subject.Lines):
    """Keeps what a run prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@contextmanager
def messages() -> Iterator[list[str]]:
    """The list gets every message of fastcifar's logger."""
    with subject.shown(Messages()) as kept:
        yield kept.lines  # type: ignore[attr-defined]


def make_config(recipe: str, optimizer: str | None = None, **settings: Any) -> subject.Config:
    config = subject.RECIPES[recipe]
    if optimizer:
        config = subject.with_optimizer(config, optimizer)
    return subject.with_settings(config, **TINY | settings)


def make_task(recipe: str = "speedrun94", optimizer: str | None = None, **settings: Any) -> subject.Task:
    config = make_config(recipe, optimizer, **settings)
    return subject.make_task(config, make_dataset(), subject.choose_hardware(config))


class Watched:
    """An executor that notes what lies between its batches, and makes every wait that torch knows of an error.

    From the second step of each epoch on; in the refresh of the batch norms too.
    """

    def __init__(self, inner: subject.Executor, sync_is_error: bool = False) -> None:
        self.inner, self.sync_is_error = inner, sync_is_error
        self.epochs: list[dict[str, Any]] = []

    def epoch(self, plan: subject.EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        epoch: dict[str, Any] = {"size": size_px, "trains": torch.is_grad_enabled(), "batches": [], "steps": []}
        self.epochs.append(epoch)
        batches = self.inner.epoch(plan, size_px)
        try:
            while True:
                with card.counting() as in_batch:
                    batch = next(batches, None)
                if batch is None:
                    return
                epoch["batches"].append(in_batch)
                with card.counting() as in_step:
                    yield batch
                epoch["steps"].append(in_step)
                if self.sync_is_error:
                    torch.cuda.set_sync_debug_mode("error")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def noting_steps() -> Iterator[list[subject.Step]]:
    """The list gets every step that a run makes."""
    made: list[subject.Step] = []
    before = subject.loop.make_step

    def make(task: subject.Task, state: subject.State, forward: Any) -> subject.Step:
        made.append(before(task, state, forward))
        return made[-1]

    subject.loop.make_step = make
    try:
        yield made
    finally:
        subject.loop.make_step = before


def watch_run(
    task: subject.Task, sync_is_error: bool = True, observers: Sequence[subject.Observer] = ()
) -> dict[str, Any]:
    """Trains to the end; what it did, as plain numbers."""
    watched = Watched(task.executor, sync_is_error)
    task = replace(task, executor=watched)
    with messages() as said, noting_steps() as steps, card.counting() as all_in_all:
        result = subject.train(task, observers)
    (step,) = steps
    return {
        "may_be_recorded": subject.can_be_recorded(task),
        "recorded": isinstance(step, subject.GraphedStep),
        "place": step.next.item() if isinstance(step, subject.GraphedStep) else None,
        "num_steps": task.num_steps,
        "sizes": task.image_sizes,
        "epochs": [epoch for epoch in watched.epochs if epoch["trains"]],
        "refresh": [epoch for epoch in watched.epochs if not epoch["trains"]],
        "all": all_in_all,
        "said": said,
        "swa_recorded": result.summary["swa_recorded"],
        "precision": result.summary["precision"],
        "accuracies": sorted(name for name in result.summary if name.startswith("accuracy")),
    }


class Layouts(TorchDispatchMode):
    """Notes device, dtype and memory layout of what enters and leaves convolutions, forward and backward.

    Not on the device "meta", where a network's arithmetic is counted.
    """

    KINDS: ClassVar = {
        "aten::convolution": ("input", "weight"),
        "aten::convolution_backward": ("grad", "input", "weight"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **kwargs or {})
        name = function.name().partition(".")[0]
        if name in self.KINDS:
            outputs = returned if isinstance(returned, tuple) else (returned,)
            tensors = dict(zip(self.KINDS[name], args, strict=False))
            tensors |= {f"output {i}": t for i, t in enumerate(outputs) if t is not None and t.ndim == 4}
            self.seen += [describe(f"{name} {what}", t) for what, t in tensors.items() if not t.is_meta]
        return returned


def describe(what: str, tensor: Tensor) -> dict[str, Any]:
    return {
        "what": what,
        "device": tensor.device.type,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "channels_last": tensor.is_contiguous(memory_format=torch.channels_last),
    }
