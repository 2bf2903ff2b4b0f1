"""What torchrun needs, and nothing when it is absent: a world of one process makes every function here do nothing.

Data parallel: the processes share the images of each step (`EpochPlan.part`), gradients are averaged by
DistributedDataParallel and batch norms see the whole step's batch, so that N processes compute what one would.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

TIMEOUT = datetime.timedelta(seconds=45)  # a rank that died ends the others in under a minute


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def join() -> World:
    """The world torchrun describes in the environment (gloo on CPUs, NCCL on GPUs), or a world of one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    return world


def leave() -> None:
    """Ends the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def total(value: Tensor, world: World) -> Tensor:
    """Sum over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(value)
    return value


def gather(value: Any, world: World) -> list[Any]:
    """Everybody's value, by rank; plain picklable values between our own processes."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(world: World) -> None:
    """Returns when every process has come here."""
    if world.size > 1:
        dist.barrier()


def data_parallel(model: nn.Module, world: World, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model as it is called in training; the model itself keeps its plain keys. BatchNorms must be joined before."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def join_batch_norms(model: nn.Module, world: World) -> None:
    """Makes every batch norm see the batch of all processes together (in place, keys unchanged)."""
    if world.size > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = JoinedBatchNorm2d


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equal parts of a batch in several processes. torch's SyncBatchNorm does this on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        sums = torch.stack([wide.sum(dim=(0, 2, 3)), wide.square().sum(dim=(0, 2, 3))])  # [2, C] f32
        sums = all_reduce(sums)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean = sums[0] / count
        var = (sums[1] / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            self.num_batches_tracked += 1  # type: ignore[operator]
            step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, step)  # type: ignore[union-attr]
            self.running_var.lerp_(var * (count / max(count - 1, 1)), step)  # type: ignore[union-attr]
        scale = torch.rsqrt(var + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)
