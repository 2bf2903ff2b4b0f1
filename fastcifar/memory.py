"""What to do when memory runs out: which batch would fit."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastcifar.job import Job, network
from fastcifar.step import autocast


def ran_out(error: BaseException) -> bool:
    """Whether an error means that a device or the host had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "DefaultCPUAllocator" in text)


def batch_that_fits(job: Job) -> int | None:
    """The batch size halved until a step of it runs here, tried on blank images; None when not even one image does."""
    batch = job.batch_size // 2
    while batch >= job.world.size:
        if job.machine.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _one_step(job, batch // job.world.size)
            return batch
        except (MemoryError, RuntimeError) as e:
            if not ran_out(e):
                return None
        batch //= 2
    return None


def _one_step(job: Job, batch: int) -> None:
    model = network(job.config, len(job.dataset.classes)).to(job.machine.device).train()
    side = max(32, job.config.low_res_px)
    x = torch.zeros(batch, 3, side, side, device=job.machine.device, dtype=job.machine.dtype)
    with autocast(job.machine):
        logits = model(x.contiguous(memory_format=torch.channels_last))
    F.cross_entropy(logits, torch.zeros(batch, dtype=torch.int64, device=x.device)).backward()
