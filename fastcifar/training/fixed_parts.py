"""Parts of resnet9 that are not trained in a part of the run: what a step and the count of arithmetic have from it.

The biases of the stem may be trained at low resolution alone (`--train-stem`), and the first stage until a point of the
run (`--cool-first-stage`, `fastcifar.optim.cooling`). Several processes compute the gradients of both nevertheless, as
DistributedDataParallel expects every one, and drop them.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.models.counts import train_flop
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.cooling import FIRST_STAGE, NO_COOLING, make_cooling

if TYPE_CHECKING:
    from fastcifar.training.state import State
    from fastcifar.training.task import Task


def stem_fixed_from_px(config: Config) -> int | None:
    """Image size from which a run of resnet9 does not train the stem's biases; None if there is none."""
    fixed = config.is_resnet9 and config.model.train_stem == "low-res" and image_size(config, 0) < 32
    return 32 if fixed else None


def fix_first_stage(model: nn.Module, fixed: bool) -> None:
    """Says whether forward passes keep nothing for a backward pass through stem and first stage, from now on."""
    if isinstance(model, ResNet9):  # a network from Python gets no attribute of ours
        model.first_stage_fixed = fixed


def let_all_train(model: nn.Module) -> None:
    """Lets backward passes go through all of a network again, for whoever trains or exports it after the run."""
    if isinstance(model, ResNet9):
        model.stem_fixed_from_px, model.first_stage_fixed = None, False


def drop_gradients(task: Task, state: State, size_px: int) -> None:
    """Removes the gradients of what is not trained in this step, on images of this size."""
    from_px, fixed = stem_fixed_from_px(task.config), tuple[str, ...]()
    if from_px is not None and size_px >= from_px:
        fixed = ("stem.",)
    if state.rates.cooling.is_over(state.step):
        fixed = FIRST_STAGE
    for name, p in state.model.named_parameters() if fixed else ():
        if name.startswith(fixed):
            p.grad = None


def factors(task: Task, state: State) -> Tensor | None:
    """[num_steps] f32 on the device: the learning rate of a first stage that cools / that of the step; else None."""
    cooling = state.rates.cooling
    if cooling == NO_COOLING:
        return None
    return cooling.factors(task.num_steps).to(task.hardware.device)


def fixed_steps(task: Task, num_steps: int) -> dict[int, int]:
    """By image size in pixels: how many of the first `num_steps` steps do not train the first stage."""
    end, per_epoch = make_cooling(task.config, task.steps_per_epoch).end, task.steps_per_epoch
    steps = Counter[int]()
    if end < num_steps and task.world.size == 1:
        for epoch in range(end // per_epoch, math.ceil(num_steps / per_epoch)):
            first, last = max(end, epoch * per_epoch), min(num_steps, (epoch + 1) * per_epoch)
            steps[image_size(task.config, epoch)] += last - first
    return dict(steps)


def step_forms(task: Task) -> list[tuple[int, bool]]:
    """(image size in pixels, whether the first stage is fixed) of the steps of a run: a graph each."""
    trained = [(size, False) for size in task.image_sizes]
    return [*trained, *((size, True) for size in fixed_steps(task, task.num_steps))]


def saved_flop(task: Task, num_steps: int) -> float:
    """FLOP that a fixed first stage saves in the first `num_steps` steps."""
    steps, saved = fixed_steps(task, num_steps), 0.0
    if steps:
        twin = copy.deepcopy(task.network)
        fix_first_stage(twin, True)
        for size, count in steps.items():
            saved += count * task.batch_size * (task.flop_per_image[size] - train_flop(twin, size))
    return saved
