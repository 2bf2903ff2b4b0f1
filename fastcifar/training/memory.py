"""After memory has run out: the batch size that fits."""

import copy

import torch
import torch.nn.functional as F

from fastcifar.runs.checkpoint import ran_out_of_memory
from fastcifar.training.step import autocast
from fastcifar.training.task import Task


def batch_that_fits(task: Task) -> int | None:
    """The batch size of a task, halved until a step of blank images fits.

    None when one image per process does not fit.
    """
    batch = task.batch_size // 2
    while batch >= task.world.size:
        if task.hardware.on_card:
            torch.cuda.empty_cache()
        try:
            _one_step(task, batch // task.world.size)
            return batch
        except (MemoryError, RuntimeError) as e:
            if not ran_out_of_memory(e):
                return None
        batch //= 2
    return None


def _one_step(task: Task, batch: int) -> None:
    model = copy.deepcopy(task.network).to(task.hardware.device).train()
    size = max(task.image_sizes)
    x = torch.zeros(batch, 3, size, size, device=task.hardware.device, dtype=task.hardware.dtype)
    with autocast(task.hardware):
        logits = model(x.contiguous(memory_format=torch.channels_last))
    F.cross_entropy(logits, torch.zeros(batch, dtype=torch.int64, device=x.device)).backward()
