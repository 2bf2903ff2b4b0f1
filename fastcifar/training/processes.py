"""Several processes under torchrun. In a world of one process every function here returns its argument.

Data parallel: the processes share the images of each step (`EpochPlan.part`), gradients are averaged by
DistributedDataParallel and batch norms see the whole step's batch, so that N processes compute what one would.
"""

import datetime
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastcifar.models.noise import StepNoise

T = TypeVar("T")
TIMEOUT = datetime.timedelta(seconds=45)  # a rank that hangs ends the others in under a minute
SLOW_TIMEOUT = datetime.timedelta(days=1)  # where one rank may work alone: loading data, training a seed of its own
AGREE_STEPS = 16  # on GPUs, where asking at every step would make the CPU wait for the others


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    agree_steps: int = 1
    slow_group: Any = None  # process group for work that may take long

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def join_processes() -> World:
    """Joins the processes that torchrun started (gloo for CPUs, NCCL for GPUs). A world of one without torchrun.

    Raises ValueError when the environment is incomplete.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return World()
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError) as e:
        raise ValueError(f"WORLD_SIZE is set but RANK or LOCAL_RANK is not as torchrun sets it ({e}): start several "
                         "processes with torchrun, or unset WORLD_SIZE") from e  # fmt: skip
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    slow_group = dist.new_group(backend="gloo", timeout=SLOW_TIMEOUT)
    return World(rank, size, local_rank, AGREE_STEPS if on_gpu else 1, slow_group)


def leave_processes() -> None:
    """Ends the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_a_process(error: BaseException) -> bool:
    """Whether an error means that another process has gone or does not answer."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in text for w in ("gloo", "nccl", "connection", "process group"))
    )


def agree(value: int | None, world: World, step: int = 0) -> int | None:
    """The largest value of all processes, None for none; between the agreement steps None, to save time."""
    if world.size == 1:
        return value
    if step % world.agree_steps:
        return None
    largest = torch.tensor(int(value or 0))  # one type in all processes, also of True and False
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest) or None


def leader_first(world: World, work: Callable[[], T]) -> T:
    """Result of `work`. The first process of a machine runs it before the others, which then find its cache filled."""
    if world.size == 1:
        return work()
    done = work() if world.local_rank == 0 else None
    dist.barrier(world.slow_group)
    return work() if done is None else done


def sum_over_processes(value: Tensor, world: World) -> Tensor:
    """Sum over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(value)
    return value


def gather(value: Any, world: World) -> list[Any]:
    """The values of all processes, by rank. Plain picklable values between processes of this program."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group=world.slow_group)
    return values


def data_parallel(model: nn.Module, world: World, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model wrapped for training in several processes; its state keeps plain keys. Join batch norms first."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    same_already = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in 2.15
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, **{same_already: False})  # type: ignore[arg-type]


def join_batch_norms(model: nn.Module, world: World) -> None:
    """Makes every batch norm use the statistics of all processes' images together (in place, keys unchanged)."""
    if world.size > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = JoinedBatchNorm2d


def share_noise(model: nn.Module, world: World) -> None:
    """Gives every image of a step the coefficients that it has in one process (in place)."""
    for module in model.modules():
        if isinstance(module, StepNoise):
            module.rank, module.size = world.rank, world.size


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs. (torch's own is deprecated.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equal parts of a batch in several processes. torch's SyncBatchNorm does this on GPUs only.

    Mean and variance of each part are taken first and then joined: the variance does not drown in the square of the
    mean, as it would in a difference of sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide, size = x.float(), dist.get_world_size()
        parts = wide.new_zeros(size, 2, x.shape[1])
        parts[dist.get_rank()] = torch.stack(torch.var_mean(wide, dim=(0, 2, 3), correction=0))
        parts = _Sum.apply(parts)  # [R, 2, C] f32: every process its own row, so the sum has them all
        mean = parts[:, 1].mean(0)
        var = parts[:, 0].mean(0) + parts[:, 1].var(0, correction=0)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            count, step = size * x.numel() / x.shape[1], self.momentum
            self.running_mean.lerp_(mean, step)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(var * (count / max(count - 1, 1)), step)  # type: ignore[union-attr, arg-type]
        scale = torch.rsqrt(var + self.eps) * self.weight
        return ((wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
