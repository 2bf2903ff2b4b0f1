"""Watches runs under the stub: what each step and each block asks of the card, and in which layout it works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import subject
import torch
from stub import Card
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

card = Card()
CLASSES = tuple("0123456789")
TINY: dict[str, Any] = {
    "batch_size": 20, "epochs": 4.0, "augment": "torch", "compile": "off", "device": "cuda", "fused_kernels": False,
}  # fmt: skip
"""Three steps an epoch of 60 images: what is counted does not depend on how many there are. The fused kernels do
nothing here, so that a run would find them wrong and say so; `with_fused_kernels` keeps them."""
ALL_TRAINED = "speedrun94, all weights trained"
"""What most cases are a variant of: `speedrun94` whose stem and first stage are trained in every step."""


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
    with subject.route_log_to(Messages()) as kept:
        yield kept.lines  # type: ignore[attr-defined]


def make_config(recipe: str, optimizer: str | None = None, **settings: Any) -> subject.Config:
    config = subject.RECIPES["speedrun94" if recipe == ALL_TRAINED else recipe]
    if recipe == ALL_TRAINED:
        config = replace(config, model=replace(config.model, train_stem="always", cool_first_stage=()))
    if optimizer:
        config = subject.with_optimizer(config, optimizer)
    return subject.with_settings(config, **TINY | settings)


def make_task(
    recipe: str = ALL_TRAINED, optimizer: str | None = None, images: int = 60, test_images: int = 20, **settings: Any
) -> subject.Task:
    config, hardware = subject.resolve(make_config(recipe, optimizer, **settings))
    return subject.make_task(config, make_dataset(images, test_images), hardware)


@dataclass
class Watch:
    """What a run asks of the card, block by block. Every count falls into one span: from its mark to the next one.

    Spans of a block: "next" (the loop takes it), "begin" (the step takes it), one of each step, "ahead" (the executor
    is asked for the next one) and "end" (all that comes before the loop takes the next one). Host time is CPU time, as
    the machine may be busy and nothing here waits.
    """

    sync_is_error: bool = False
    """Every wait that torch knows of is an error from the first step of a block to the end of its last."""
    average: subject.RunningMean | None = None
    lost: int = 0
    """Most buffers that a replayed graph reads or writes and that were no more."""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    span: dict[str, Any] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    since: float = 0.0

    def begin_block(self) -> None:
        self.blocks.append({"trains": torch.is_grad_enabled(), "steps": []})
        self.mark("next")

    def mark(self, name: str) -> None:
        """Ends a span and begins the next one, of the last block."""
        self.close()
        span = self.open()
        if name == "step":
            self.blocks[-1]["steps"].append(span)
        else:
            self.blocks[-1][name] = span
        if self.sync_is_error and self.blocks[-1]["trains"]:
            torch.cuda.set_sync_debug_mode("error" if name in ("step", "ahead") else "default")

    def open(self) -> dict[str, Any]:
        self.span = {"averaged": self._count()}
        self.before, self.since = card.counters(), time.process_time()
        return self.span

    def close(self) -> None:
        """Ends a span."""
        us, after = (time.process_time() - self.since) * 1e6, card.counters()
        if self.span:
            counted = {name: n - self.before[name] for name, n in after.items() if n != self.before[name]}
            self.span |= {"counted": counted, "us": us, "averaged": self._count() - self.span["averaged"]}
        self.span = {}

    def _count(self) -> int:
        return self.average.count if self.average else 0


class Watched(subject.Executor):
    """An executor whose blocks are watched, also those of the refresh of the batch norms."""

    def __init__(self, inner: subject.Executor, watch: Watch) -> None:
        self.__dict__ |= inner.__dict__  # images, stream and the size of blocks
        self.inner, self.watch = inner, watch

    def make(self, plan: subject.EpochPlan, size_px: int) -> subject.Block:
        self.inner.draws_from_px = self.draws_from_px  # which the recorded step sets on this one
        return self.inner.make(plan, size_px)

    def blocks(self, plans: Iterable[tuple[subject.EpochPlan, int]]) -> WatchedBlocks:
        return WatchedBlocks(super().blocks(plans), self.watch)

    def epoch(self, plan: subject.EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epoch(plan, size_px):
            self.watch.mark("step")
            yield batch


class WatchedBlocks:
    """Blocks that are watched."""

    def __init__(self, inner: subject.Blocks, watch: Watch) -> None:
        self.inner, self.watch = inner, watch

    def __iter__(self) -> WatchedBlocks:
        return self

    def __next__(self) -> subject.Block:
        self.watch.begin_block()
        try:
            block = next(self.inner)
        except StopIteration:
            self.watch.close()
            self.watch.blocks.pop()
            raise
        self.watch.mark("begin")
        stream = self.inner.executor.stream
        waited = stream is None or card.knows(torch.cuda.current_stream(), stream)
        self.watch.blocks[-1] |= {
            "size": block.size_px,
            "drawn": isinstance(block.images, subject.Draws),
            "waited": waited,
        }
        return block

    def work_ahead(self) -> None:
        self.watch.mark("ahead")
        self.inner.work_ahead()
        self.watch.mark("end")


class WatchedStep:
    """A step that is watched."""

    def __init__(self, inner: subject.Step, watch: Watch) -> None:
        self.inner, self.watch, self.capture, self.fused = inner, watch, inner.capture, inner.fused
        watch.average = inner.state.average

    def begin(self, block: subject.Block) -> None:
        self.watch.mark("begin")
        self.inner.begin(block)

    def __call__(self, i: int) -> None:
        self.watch.mark("step")
        self.inner(i)


def buffers(work: Any) -> list[Tensor]:
    """What recorded work reads and writes again at each replay: the tensors of its object, weights and momenta."""
    owner = getattr(work, "func", work).__self__
    state, model = vars(owner).get("state"), vars(owner).get("model")
    own = [value for value in vars(owner).values() if isinstance(value, Tensor)]
    if state is None:
        return [*own, *model.state_dict().values()]
    momenta = [kept["momentum_buffer"] for o in state.optimizers for kept in o.state.values()]
    return [*own, *momenta, *state.model.state_dict().values(), state.loss_sum]


@contextmanager
def watching(watch: Watch) -> Iterator[list[subject.Step]]:
    """Steps that the training loop makes are watched, and what graphs read; the list gets the steps."""
    made: list[subject.Step] = []
    before, record = subject.preparing.make_step, subject.CudaGraphs.__call__

    def make(task: subject.Task, state: subject.State, forward: Any) -> WatchedStep:
        made.append(before(task, state, forward))
        return WatchedStep(made[-1], watch)

    def record_and_look(self: subject.CudaGraphs, work: Callable[[], None]) -> Callable[[], None]:
        replay, kept = record(self, work), [StorageWeakRef(t.untyped_storage()) for t in buffers(work)]

        def replay_and_look() -> None:
            watch.lost = max(watch.lost, sum(storage.expired() for storage in kept))
            replay()

        return replay_and_look

    subject.preparing.make_step = make
    subject.CudaGraphs.__call__ = record_and_look  # type: ignore[method-assign]
    try:
        yield made
    finally:
        torch.cuda.set_sync_debug_mode("default")
        subject.preparing.make_step = before
        subject.CudaGraphs.__call__ = record  # type: ignore[method-assign]


def watch_run(
    task: subject.Task, sync_is_error: bool = True, observers: Sequence[subject.Observer] = ()
) -> dict[str, Any]:
    """Trains to the end; what it did, as plain numbers."""
    watch = Watch(sync_is_error)
    watched = replace(task, executor=Watched(task.executor, watch))
    with (
        messages() as said, watching(watch) as steps, card.running_beside(task.executor.stream),
        card.counting() as all_in_all,
    ):  # fmt: skip
        result = subject.train(watched, observers)
    watch.close()
    (step,) = steps
    return {
        "may_be_recorded": task.can_capture,
        "recorded": isinstance(step, subject.CapturedStep),
        "fused_update": result.summary["fused_update"],
        "place": step.next.item() if isinstance(step, subject.CapturedStep) and not step.fused else None,
        "num_steps": task.num_steps,
        "sizes": task.image_sizes,
        "blocks": [block for block in watch.blocks if block["trains"]],
        "refresh": [block for block in watch.blocks if not block["trains"]],
        "all": all_in_all,
        "lost": watch.lost,
        "said": said,
        "swa_recorded": result.summary["swa_recorded"],
        "precision": result.summary["precision"],
        "fused": result.summary["fused_kernels"],
        "conv_kernels": result.summary["conv_kernels"],
        "conv_ms": result.summary["conv_ms"],
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
