"""Memory: blocks that the allocator of a CPU keeps, and the batch size that fits after memory has run out."""

import copy
import ctypes
import sys

import torch
import torch.nn.functional as F

from fastcifar.runs.checkpoint import ran_out_of_memory
from fastcifar.training.step import autocast
from fastcifar.training.task import Task

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h; mallopt(3)."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks of any size below 1 GiB. Returns whether it did: elsewhere nothing happens.

    By default glibc gives the larger activations of a step back to the system, which then fills every page with zeros
    again in the next step: a sixth of the time of a step of the small network at batch 500. No value changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


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
