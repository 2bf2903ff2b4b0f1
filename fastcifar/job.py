"""A run before its first step: what is trained where (`Job`, fixed) and all that changes while training (`State`).

Shapes: B images of a step, N training images, K classes; steps and epochs count from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastcifar import checkpoint, distributed
from fastcifar.augment import DeviceData, Executor, TorchExecutor, side_at, to_device
from fastcifar.config import Config
from fastcifar.dali import DaliExecutor, DaliUnavailable
from fastcifar.data import Dataset, hold_out
from fastcifar.distributed import World
from fastcifar.machine import Machine
from fastcifar.model import ResNet9, make_model, train_flop
from fastcifar.optim import make_optimizers
from fastcifar.progress import Lines, Progress
from fastcifar.schedules import Rule, Schedule, count_steps, extend, make_schedule
from fastcifar.swa import RunningMean
from fastcifar.timing import Stopwatch

SCALER_START = 2.0**12
"""First loss scale in fp16. It only ever falls, by halves: so the number of skipped steps can be read off it."""


@dataclass
class Job:
    """What is trained where: settings, data on the device, the compiled calls. Nothing in it changes while training."""

    config: Config
    machine: Machine
    dataset: Dataset
    world: World
    executor: Executor
    test: DeviceData
    watched: DeviceData  # what the accuracy per epoch is measured on: test images, or held-out ones with val_split
    num_train: int
    steps_per_epoch: int
    flop_per_image: dict[int, float]  # by image side
    watch: Stopwatch
    progress: Progress = field(default_factory=Lines)
    stop: Callable[[], int | None] = lambda: None
    out: Path | None = None

    @property
    def num_steps(self) -> int:
        return count_steps(self.config.extend_epochs or self.config.epochs, self.steps_per_epoch)

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, self.num_train)

    @property
    def train_pflop(self) -> float:
        """Forward and backward of the whole run."""
        per_epoch = self.steps_per_epoch * self.batch_size
        whole, steps_left = divmod(self.num_steps, self.steps_per_epoch)
        images = [per_epoch] * whole + [steps_left * self.batch_size]
        return sum(n * self.flop_per_image[side_at(self.config, e)] for e, n in enumerate(images) if n) / 1e15


@dataclass
class State:
    """Everything that changes while training, and so everything a checkpoint holds."""

    model: nn.Module
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler
    schedule: Schedule
    mean: RunningMean
    loss_sum: Tensor  # over the steps of this epoch
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics rows

    def tree(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "schedule": self.schedule.state(),
            "mean": self.mean.state(),
            "loss_sum": self.loss_sum,
            "step": self.step,
            "history": self.history,
        }

    def load(self, tree: dict[str, Any]) -> None:
        self.model.load_state_dict(tree["model"])
        for optimizer, saved in zip(self.optimizers, tree["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(tree["scaler"])
        self.schedule.load(tree["schedule"])
        self.mean.load(tree["mean"])
        self.loss_sum.copy_(tree["loss_sum"])
        self.step, self.history = tree["step"], tree["history"]


def prepare(config: Config, dataset: Dataset, machine: Machine, world: World | None = None, **more: Any) -> Job:
    """Data on the device and everything derived from the settings. ValueError when they do not fit together."""
    world = world or World()
    held = None
    if config.val_split:
        dataset, *held = hold_out(dataset, config.val_split, config.seed)
    num_train = len(dataset.y_train)
    batch = min(config.batch_size, num_train)
    if batch % world.size:
        raise ValueError(f"batch_size {batch} does not divide among {world.size} processes; choose a multiple")

    def on_device(images: Any, labels: Any, pad_px: int) -> DeviceData:
        return to_device(images, labels, dataset.mean, dataset.std, pad_px, machine.device, machine.dtype)

    def mine(images: Any, labels: Any) -> DeviceData:
        return on_device(images[world.rank :: world.size], labels[world.rank :: world.size], 0)

    test = mine(dataset.x_test, dataset.y_test)
    train_data = on_device(dataset.x_train, dataset.y_train, config.crop_pad_px)
    executor, machine = _executor(config, machine, train_data)
    model = make_model(config.network, machine.scale, len(dataset.classes), config.norm, config.seed)
    return Job(
        config=config, machine=machine, dataset=dataset, world=world, num_train=num_train,
        executor=executor, test=test, watched=mine(*held) if held else test,
        steps_per_epoch=num_train // batch, flop_per_image={s: train_flop(model, s) for s in {config.low_res_px, 32}},
        **{"watch": Stopwatch(machine.device), **more},
    )  # fmt: skip


def _executor(config: Config, machine: Machine, data: DeviceData) -> tuple[Executor, Machine]:
    """The executor, and the machine with what it really is: `auto` goes on without DALI where DALI does not run."""
    if machine.augment == "torch":
        return TorchExecutor(data, config.cutout_px), machine
    try:
        return DaliExecutor(data, config.cutout_px), machine
    except DaliUnavailable as e:
        if config.augment == "dali":
            raise
        why = {**machine.why, "augment": str(e)}
        return TorchExecutor(data, config.cutout_px), replace(machine, augment="torch", why=why)


def start(job: Job, rule: Rule | None = None) -> State:
    """The state before the first step, or the one `config.resume` holds. CheckpointError when that does not fit."""
    config, device = job.config, job.machine.device
    model = make_model(config.network, job.machine.scale, len(job.dataset.classes), config.norm, config.seed)
    model = model.to(device)
    if isinstance(model, ResNet9):
        rows = torch.linspace(0, job.num_train - 1, min(5000, job.num_train)).long()  # of all classes, also if sorted
        images = torch.as_tensor(job.dataset.x_train[rows.numpy()]).float() / 255
        mean, std = torch.tensor(job.dataset.mean), torch.tensor(job.dataset.std)
        model.whiten(((images - mean) / std).permute(0, 3, 1, 2))
    distributed.join_batch_norms(model, job.world)
    state = State(
        model=model, optimizers=make_optimizers(model, config), mean=RunningMean(model),
        scaler=torch.amp.GradScaler(device.type, SCALER_START, growth_interval=2**31 - 1,
                                    enabled=job.machine.precision == "fp16"),
        schedule=make_schedule(config, job.steps_per_epoch, rule), loss_sum=torch.zeros((), device=device),
    )  # fmt: skip
    if config.resume:
        path = Path(config.resume) / "checkpoint.pt"
        content = checkpoint.load(path)
        changed = checkpoint.differences(checkpoint.config_from(content["config"], str(path)), config)
        if content["digest"] != job.dataset.digest:
            changed.append("the images differ from those it was trained on (checksum)")
        if changed:
            raise checkpoint.CheckpointError(f"{path}: may not change within a run: {'; '.join(changed)}")
        try:
            state.load(content["state"])
            for phase in ("train", "eval"):  # times of the whole run, not of its last part
                job.watch.time_s[phase] += content["state"]["time_s"].get(phase, 0.0)
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as e:
            raise checkpoint.CheckpointError(f"{path}: does not fit this network and optimizer ({e})") from e
    state.schedule = extend(state.schedule, config, job.steps_per_epoch)
    return state
