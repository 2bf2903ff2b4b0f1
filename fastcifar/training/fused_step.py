"""What of a captured step is done by kernels beside those of the batch norms: the update, the images of the stem."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcifar.augment.stem import works
from fastcifar.models.fused import is_fused
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.fused_update import FusedUpdate, fused_update
from fastcifar.training.fixed_parts import stem_fixed_from_px
from fastcifar.training.state import State
from fastcifar.training.task import Task


def make_fused_update(task: Task, state: State, forward: Callable[[Tensor], Tensor]) -> FusedUpdate | None:
    """The update by kernels where the batch norms use theirs, in bf16: in fp16 the loss scale wants the plain one."""
    dtype = task.hardware.dtype
    if task.parts.names or dtype != torch.bfloat16:  # the parts may have a loss of their own
        return None
    model = state.model
    if not isinstance(model, ResNet9) or not is_fused(model) or forward is not model:
        return None
    return fused_update(model, state.optimizers, task.config, dtype)


def makes_images_from_px(task: Task, state: State) -> int | None:
    """Image size from which a captured step takes draws, and the stem's kernel the uint8 images: where the stem is not
    trained, as the kernel has no gradient, beside the other kernels."""
    fixed_from_px, executor, model = stem_fixed_from_px(task.config), task.executor, state.model
    if fixed_from_px is None or not is_fused(model) or task.config.machine.executor != "torch":
        return None
    conv: Any = model.get_submodule("stem")
    return fixed_from_px if works(executor.images, conv, task.config.model.activation, executor.cutout_px) else None
