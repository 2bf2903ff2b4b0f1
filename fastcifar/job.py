"""A run before its first step: what is trained where (`Job`, fixed), and its first `State`.

Shapes: B images of a step, N training images, K classes; steps and epochs count from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
from fastcifar.schedules import Rule, count_steps, extend, make_schedule
from fastcifar.state import SCALER_START, State
from fastcifar.swa import RunningMean
from fastcifar.timing import Stopwatch

CHECKPOINT_AFTER_S = 30.0
"""Seconds of training between two checkpoints, unless --checkpoint-every says how many epochs: a run of seconds, such
as speedrun94 on a card, is not held up by writing 31 MB to the disk after each of its epochs."""


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
    stem_filters: Tensor | None  # whitening filters of the training images, the same for every seed; None: no such stem
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


def prepare(config: Config, dataset: Dataset, machine: Machine, world: World | None = None, **more: Any) -> Job:
    """Data on the device and everything derived from the settings. ValueError when they do not fit together.

    What `auto` came to is part of the job's settings from here on where it bears on the result, so that a run which is
    resumed elsewhere stays what it was.
    """
    world = world or World()
    config = replace(config, scale=machine.scale, precision=machine.precision)  # type: ignore[arg-type]
    held: list[Any] = []
    if config.val_split:
        dataset, *held = hold_out(dataset, config.val_split, config.seed)
    num_train = len(dataset.y_train)
    batch = min(config.batch_size, num_train)
    if batch % world.size:
        raise ValueError(f"batch_size {batch} does not divide among {world.size} processes; choose a multiple")
    if min(len(labels) for labels in (dataset.y_test, *held[1:])) < world.size:
        raise ValueError(f"fewer test images than the {world.size} processes; use a larger set or fewer processes")

    def on_device(images: Any, labels: Any, pad_px: int) -> DeviceData:
        return to_device(images, labels, dataset.mean, dataset.std, pad_px, machine.device, machine.dtype)

    def mine(images: Any, labels: Any) -> DeviceData:
        return on_device(images[world.rank :: world.size], labels[world.rank :: world.size], 0)

    test = mine(dataset.x_test, dataset.y_test)
    train_data = on_device(dataset.x_train, dataset.y_train, config.crop_pad_px)
    executor, machine = _executor(config, machine, train_data)
    model = network(config, len(dataset.classes))
    stem_filters = model.whitening_filters(_sample(dataset, machine.device)) if isinstance(model, ResNet9) else None
    return Job(
        config=config, machine=machine, dataset=dataset, world=world, num_train=num_train,
        executor=executor, test=test, watched=mine(*held) if held else test,
        steps_per_epoch=num_train // batch, flop_per_image={s: train_flop(model, s) for s in {config.low_res_px, 32}},
        stem_filters=stem_filters,
        **{"watch": Stopwatch(machine.device), **more},
    )  # fmt: skip


def _sample(dataset: Dataset, device: torch.device) -> Tensor:
    """Up to 5,000 normalised training images [N, 3, 32, 32] f32, of all classes, also where they lie sorted."""
    num_train = len(dataset.y_train)
    rows = torch.linspace(0, num_train - 1, min(5000, num_train)).long()
    images = torch.as_tensor(dataset.x_train[rows.numpy()]).to(device).float() / 255
    mean, std = (torch.tensor(v, device=device) for v in (dataset.mean, dataset.std))
    return ((images - mean) / std).permute(0, 3, 1, 2)


def checkpoint_is_due(config: Config, epoch: int, since_last_s: float) -> bool:
    """At the end of an epoch: as often as asked, or once training for CHECKPOINT_AFTER_S would be lost."""
    if config.checkpoint_every is None:
        return since_last_s >= CHECKPOINT_AFTER_S
    return config.checkpoint_every > 0 and (epoch + 1) % config.checkpoint_every == 0


def can_be_recorded(job: Job) -> bool:
    """Whether a CUDA graph can hold the step: nothing in it may be decided or read by the host.

    Not the loss scaling of fp16; not gradients that are shared between processes; not what torch.compile records by
    itself; not apex, whose kernel takes momentum as a number.
    """
    machine = job.machine
    return (
        job.config.cuda_graph
        and machine.device.type == "cuda"
        and job.config.optimizer != "apex-sgd"
        and machine.precision != "fp16"
        and job.world.size == 1
        and machine.compile in ("off", "default")
    )


def network(config: Config, num_classes: int) -> nn.Module:
    """A job's network before its first step; `config.scale` must be decided."""
    return make_model(config.network, config.scale, num_classes, config.norm, config.seed, config.activation)


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
    model = network(config, len(job.dataset.classes)).to(device)
    if job.stem_filters is not None:
        with torch.no_grad():
            model.stem.weight.copy_(job.stem_filters)  # type: ignore[union-attr, operator]
    distributed.join_batch_norms(model, job.world)
    state = State(
        model=model, optimizers=make_optimizers(model, config, can_be_recorded(job)), mean=RunningMean(model),
        scaler=torch.amp.GradScaler(device.type, SCALER_START, growth_interval=2**31 - 1,
                                    enabled=job.machine.precision == "fp16"),
        schedule=make_schedule(config, job.steps_per_epoch, rule), loss_sum=torch.zeros((), device=device),
    )  # fmt: skip
    if config.resume:
        _resume(job, state)
    return state


def _resume(job: Job, state: State) -> None:
    """Puts the run's last checkpoint into the state; a run that was stopped before its first one begins anew."""
    config, path = job.config, Path(job.config.resume or "") / "checkpoint.pt"
    if not path.exists() and (path.parent / "config.json").exists():
        return
    content = checkpoint.load(path)
    saved = checkpoint.config_from(content["config"], str(path))
    changed = checkpoint.differences(saved, config)
    if content["digest"] != job.dataset.digest:
        changed.append("the images are not those it was trained on (checksum)")
    if changed:
        raise checkpoint.CheckpointError(f"{path}: may not change within a run: {'; '.join(changed)}")
    state.schedule = extend(state.schedule, saved, job.steps_per_epoch)
    if job.num_steps < len(state.schedule.table):
        raise ValueError(f"extend_epochs {config.extend_epochs or config.epochs:g} is shorter than the run it extends, "
                         f"{saved.extend_epochs or saved.epochs:g} epochs")  # fmt: skip
    try:
        time_s = content["state"].pop("time_s", None)
        checkpoint.check(time_s, {"train": 0.0, "eval": 0.0}, "time_s")
        state.load(content["state"], job.num_steps, job.steps_per_epoch)
    except (ValueError, TypeError) as e:
        raise checkpoint.CheckpointError(f"{path}: {e}; resume another run or start anew") from e
    state.schedule = extend(state.schedule, config, job.steps_per_epoch)
    for phase, spent in time_s.items():  # times of the whole run, not of its last part
        job.watch.time_s[phase] += spent
