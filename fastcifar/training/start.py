"""The state that a run starts from: a new network, with the weights of a file (--init), or a checkpoint (--resume).

Shapes: N images, C = 3 channels, H W = 32 pixels.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.config.config import Config, Model
from fastcifar.config.settings import method_differences
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.averaging import RunningMean
from fastcifar.optim.optimizers import make_optimizers
from fastcifar.optim.schedule_table import count_steps, extend, make_schedule_table, plan_averages
from fastcifar.optim.swag import Swag
from fastcifar.runs import checkpoint
from fastcifar.runs.config_file import config_from_plain
from fastcifar.runs.model_file import find_model, load_model
from fastcifar.training import processes
from fastcifar.training.parts import make_optimizer
from fastcifar.training.state import FIRST_LOSS_SCALE, State
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, spread_rows

ALIKE = ("network", "scale", "norm", "activation")
"""Settings in which the model of the file of --init and that of the run must agree."""
WHITENED_ON_CARD = 1000
"""Images for the stem's filters on a card: fewer than on a CPU, as that is in the timed part of every run."""


def initial_state(task: Task, stopwatch: Stopwatch) -> State:
    """The state before the first step, or that of the checkpoint in `command.resume`.

    Raises CheckpointError when the checkpoint does not fit the task, ValueError when the weights to start from do not.
    """
    config, device, parts = task.config, task.hardware.device, task.parts
    model: Any = copy.deepcopy(task.network).to(device)
    processes.join_batch_norms(model, task.world)
    processes.share_noise(model, task.world)
    rank, is_fp16 = config.tail.swag_rank if config.tail else 0, task.hardware.dtype == torch.float16
    state = State(
        model=model,
        optimizers=(
            [make_optimizer(parts.optimizer, model, config.schedule.peak)]
            if parts.optimizer
            else make_optimizers(model, config, task.can_capture and not parts.runs_on_the_host)
        ),
        average=Swag(model, rank) if rank else RunningMean(model),
        scaler=torch.amp.GradScaler(device.type, FIRST_LOSS_SCALE, growth_interval=2**31 - 1, enabled=is_fp16),
        rates=make_schedule_table(config, task.steps_per_epoch),
        loss_sum=torch.zeros((), device=device),
        stopwatch=stopwatch,
        steps_per_epoch=task.steps_per_epoch,
        world=task.world,
    )
    folder = task.command.resume
    resumed = folder is not None and resume(state, Path(folder), config, task.dataset.digest)
    if config.model.init is not None and not resumed:  # a checkpoint has the weights: the file may be gone
        load_initial(model, config.model)
    return state


@torch.no_grad()
def preprocess(task: Task, model: nn.Module, is_new: bool = True) -> None:
    """Makes the images' borders and, in a new run, the stem's filters from the images on the device, in place.

    On a card it belongs to the timed part of every run, as in other programs.
    """
    task.executor.fill_borders()
    if is_new and isinstance(model, ResNet9) and task.config.model.init is None:  # else the file's filters stay
        model.stem.weight.copy_(filters_of_device_images(model, task.executor.images))


def filters_of_device_images(model: ResNet9, images: DeviceImages) -> Tensor:
    """Whitening filters [C0, 3, 2, 2] of products in fp32, from `WHITENED_ON_CARD` of the images where they lie."""
    rows, size = spread_rows(len(images.labels), WHITENED_ON_CARD), images.padded.shape[1] - 2 * images.pad_px
    inner = slice(images.pad_px, images.pad_px + size)
    pixels = images.padded[rows.to(images.padded.device), inner, inner]  # [N, H, W, C] u8
    x = torch.addcmul(-images.mean * images.inv_std, pixels.float(), images.inv_std)
    return model.whitening_filters(x.permute(0, 3, 1, 2), dtype=torch.float32)


@torch.no_grad()
def load_initial(model: nn.Module, settings: Model) -> None:
    """Copies the weights and statistics of `settings.init` into a fresh model, in place; settings.scale is resolved.

    A head of another number of classes stays as it is, and so does the count of the random draws: it is this run's.
    Nothing in the file is executed. ValueError when it is no whole model or one of another network.
    """
    path = find_model(Path(settings.init or ""))
    source, facts = load_model(path, flag="--init")
    theirs = ", ".join(f"{name} {facts[name]}" for name in ALIKE)
    ours = ", ".join(f"{name} {getattr(settings, name)}" for name in ALIKE)
    if theirs != ours:
        raise ValueError(f"--init {path}: holds a model of {theirs}, but this run has {ours}; give the flags of the "
                         "file")  # fmt: skip
    fresh, given = model.state_dict(), source.state_dict()
    own = {name for name in fresh if name == "noise.step"}
    if fresh["head.weight"].shape != given["head.weight"].shape:
        own |= {name for name in fresh if name.startswith("head.")}
    model.load_state_dict({name: fresh[name] if name in own else given[name] for name in fresh})


def resume(state: State, folder: Path, config: Config, digest: str) -> bool:
    """Loads checkpoint.pt of a run folder into a fresh state, in place, and says whether there was one.

    A run that was stopped before its first checkpoint starts from the beginning. CheckpointError when the checkpoint
    is damaged, or is one of other settings or images; ValueError when the extension is shorter than the run.
    """
    path = folder / "checkpoint.pt"
    if not path.exists() and (path.parent / "config.json").exists():
        return False
    content = checkpoint.load(path)
    saved = config_from_plain(content["config"], str(path), own=config.schedule)
    changed = method_differences(saved, config)
    if content["digest"] != digest:
        changed.append("the images are not those it was trained on (checksum)")
    if changed:
        raise checkpoint.CheckpointError(f"{path}: may not change within a run: {'; '.join(changed)}")
    steps_per_epoch = state.steps_per_epoch
    num_steps = count_steps(config.final_epochs, steps_per_epoch)
    extend(state.rates, saved, steps_per_epoch)
    if num_steps < state.num_steps:
        raise ValueError(f"extend_epochs {config.final_epochs:g} is shorter than the run it extends, "
                         f"{saved.final_epochs:g} epochs")  # fmt: skip
    try:
        time_s: Any = content["state"].pop("time_s", None)
        checkpoint.check(time_s, {"train": 0.0, "eval": 0.0}, "time_s")
        state.load(content["state"], num_steps)
    except (ValueError, TypeError) as e:
        raise checkpoint.CheckpointError(f"{path}: {e}; resume another run or start anew") from e
    extend(state.rates, config, steps_per_epoch)
    plan_averages(state.rates, config, steps_per_epoch, state.step, state.average.count)
    for phase, seconds in time_s.items():  # times of the whole run, not of its last part
        state.stopwatch.time_s[phase] += seconds
    return True
