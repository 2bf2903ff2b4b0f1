"""The state that a run starts from, and what a card makes of the images within its clock.

Shapes: N images, C = 3 channels, H W = 32 pixels.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.augment.images import DeviceImages
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.averaging import RunningMean
from fastcifar.optim.optimizers import make_optimizers
from fastcifar.optim.schedule_table import make_schedule_table
from fastcifar.optim.swag import Swag
from fastcifar.training import processes
from fastcifar.training.memory import keep_freed_memory
from fastcifar.training.parts import make_optimizer
from fastcifar.training.resume import load_initial, resume
from fastcifar.training.state import FIRST_LOSS_SCALE, State
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task, spread_rows

WHITENED_ON_CARD = 1000
"""Images for the stem's filters on a card: fewer than on a CPU, as that is in the timed part of every run."""


def initial_state(task: Task, stopwatch: Stopwatch) -> State:
    """The state before the first step, or that of the checkpoint in `command.resume`.

    Raises CheckpointError when the checkpoint does not fit the task, ValueError when the weights to start from do not.
    """
    config, device, parts = task.config, task.hardware.device, task.parts
    if device.type == "cpu":
        keep_freed_memory()
    model: Any = copy.deepcopy(task.network).to(device)
    processes.join_batch_norms(model, task.world)
    processes.share_noise(model, task.world)
    rank, is_fp16 = config.tail.swag_rank if config.tail else 0, task.hardware.dtype == torch.float16
    average = Swag(model, rank) if rank else RunningMean(model)
    state = State(
        model=model,
        optimizers=(
            [make_optimizer(parts.optimizer, model, config.schedule.peak)]
            if parts.optimizer
            else make_optimizers(model, config, task.can_capture and not parts.runs_on_the_host)
        ),
        average=average,
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
