"""A run before its first step: what is trained where (`Job`, fixed) and all that changes while training (`State`).

Shapes: B images of a step, N training images, K classes; steps and epochs count from 0.
"""

from __future__ import annotations

import math
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
        """Plain containers and tensors. Learning rate and momentum are in the schedule's table only."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [[_momentum(o, p) for p in _weights(o)] for o in self.optimizers],
            "loss_scale": float(self.scaler.get_scale()),
            "schedule": self.schedule.state(),
            "mean": self.mean.state(),
            "loss_sum": self.loss_sum,
            "step": self.step,
            "history": self.history,
        }

    @torch.no_grad()
    def load(self, tree: dict[str, Any], num_steps: int, steps_per_epoch: int) -> None:
        """Goes on from `tree()`. ValueError, with nothing loaded, when a part of it is not what this run writes."""
        _check_tree(tree, self, num_steps, steps_per_epoch)
        self.model.load_state_dict(tree["model"])
        for optimizer, momenta in zip(self.optimizers, tree["optimizers"], strict=True):
            for p, momentum in zip(_weights(optimizer), momenta, strict=True):
                optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(momentum)
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": tree["loss_scale"]})
        self.schedule.load(tree["schedule"])
        self.mean.load(tree["mean"])
        self.loss_sum.copy_(tree["loss_sum"])
        self.step, self.history = tree["step"], tree["history"]

    def is_finite(self) -> bool:
        """Whether weights and loss are; waits for the device."""
        norms = torch._foreach_norm(list(self.model.parameters()))
        return bool(torch.stack([*norms, self.loss_sum]).sum().isfinite())


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _momentum(optimizer: Optimizer, p: Tensor) -> Tensor:
    """Zero before the first step, from which torch goes on as from none."""
    momentum = optimizer.state.get(p, {}).get("momentum_buffer")
    return torch.zeros_like(p) if momentum is None else momentum


def skipped_steps(scale: float) -> int:
    """How many steps fp16 overflow has skipped, read off the loss scale."""
    return round(math.log2(SCALER_START / scale))


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
    return Job(
        config=config, machine=machine, dataset=dataset, world=world, num_train=num_train,
        executor=executor, test=test, watched=mine(*held) if held else test,
        steps_per_epoch=num_train // batch, flop_per_image={s: train_flop(model, s) for s in {config.low_res_px, 32}},
        **{"watch": Stopwatch(machine.device), **more},
    )  # fmt: skip


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


def _check_tree(tree: dict[str, Any], fresh: State, num_steps: int, steps_per_epoch: int) -> None:
    """ValueError when a saved tree is not one that this run could have written at some step."""
    like = fresh.tree()
    loose = ("history", "schedule")
    checkpoint.check({**tree, **{k: like[k] for k in loose if k in tree}}, like, "state")
    step, count = tree["step"], tree["mean"]["count"]
    if not 0 <= step <= num_steps:
        raise ValueError(f"step is not within this run's {num_steps}")
    if not 0 <= count <= step:
        raise ValueError(f"mean.count is not within its {step} steps")
    if not 0 < tree["loss_scale"] <= SCALER_START:
        raise ValueError("loss_scale is not one that training comes to")
    _check_schedule(tree["schedule"], like["schedule"])
    _check_history(tree["history"], step, num_steps, steps_per_epoch)


def _check_schedule(saved: Any, like: dict[str, Any]) -> None:
    checkpoint.check(saved, like, "schedule")
    if "plateau" not in like and not torch.allclose(saved["table"], like["table"], rtol=1e-6, atol=1e-9):
        raise ValueError("schedule.table is not the one these settings make")
    learnt = ("best", "num_bad_epochs", "last_epoch", "cooldown_counter", "_last_lr")
    for name, value in like.get("plateau", {}).items():
        if name not in learnt and saved["plateau"][name] != value:
            raise ValueError(f"schedule.plateau.{name} is not the one these settings make")


def _check_history(rows: Any, step: int, num_steps: int, steps_per_epoch: int) -> None:
    """A row per whole epoch, and one where a run ended inside an epoch."""
    like: dict[str, Any] = dict.fromkeys(("lr", "momentum", "loss_train", "time_s"), 0.0)
    like |= {"epoch": 0, "step": 0, "phase": ""}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("history is no list of rows")
    for i, row in enumerate(rows):
        accuracies = {k: 0.0 for k, v in row.items() if k in ("accuracy_test", "accuracy_val") and v is not None}
        checkpoint.check({k: v for k, v in row.items() if v is not None}, like | accuracies, f"history.{i}")
    steps = [row["step"] for row in rows]
    whole = [s for s in steps if s % steps_per_epoch == 0]
    ended = step < num_steps or steps[-1:] == [step]
    if whole != list(range(steps_per_epoch, step + 1, steps_per_epoch)) or steps != sorted({*steps}) or not ended:
        raise ValueError(f"history has not the rows of {step} steps")
