"""Random coefficients that depend on (seed, step, image) alone, and a factor that differs between the two passes.

torch's generators keep their state outside of the model: a resumed run would have to restore it, and a recorded CUDA
graph or compiled code may draw in another order. A counter-based generator has no such state (Salmon et al. 2011,
"Parallel Random Numbers: As Easy as 1, 2, 3"). torch offers none that takes its counter from the device, so here is a
small one: a chain of the finalizer of MurmurHash3 (Appleby 2011) over seed, step, image and coefficient.

Shapes: B images, Q coefficients per image.
"""

from typing import Any

import torch
from torch import Tensor, nn

LOW_32 = 0xFFFFFFFF
# The factors of MurmurHash3, less 2^32: the same modulo 2^32, and no product of a step leaves the range of int64.
FACTOR_1, FACTOR_2 = 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)


def mixed(x: Tensor) -> Tensor:
    """The finalizer of MurmurHash3: int64 values in [0, 2^32) -> the same range, one to one."""
    x = ((x ^ (x >> 16)) * FACTOR_1) & LOW_32
    x = ((x ^ (x >> 13)) * FACTOR_2) & LOW_32
    return x ^ (x >> 16)


class StepNoise(nn.Module):
    """Uniform numbers for each step of a run: a function of (seed, step, image of the step, coefficient).

    `step` [] int64 counts the calls. It is a buffer: checkpoints hold it, whoever puts the model's state back puts it
    back, too, and a recorded step counts on the device. No other generator is touched, and the host waits for nothing.
    Where `size` processes share a step, the one of `rank` has every size-th image of it.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, seed: int, count: int) -> None:
        super().__init__()
        self.count, self.rank, self.size = count, 0, 1
        self.register_buffer("seed", torch.tensor(seed), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, batch: int) -> Tensor:
        """The numbers [Q, B] f32 in [0, 1) of the next step, multiples of 2^-24."""
        device = self.step.device
        key = mixed(self.seed & LOW_32)
        key = mixed(key ^ (self.seed >> 32))  # a seed is below 2^63
        key = mixed(key ^ (self.step & LOW_32))
        image = torch.arange(self.rank, self.rank + batch * self.size, self.size, device=device)
        coefficient = torch.arange(self.count, device=device)
        bits = mixed(mixed(key ^ image) ^ coefficient[:, None])
        self.step += 1
        return (bits >> 8).float() * 2.0**-24


class _Scale(torch.autograd.Function):
    """x times one factor; its gradient times another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, backward_factor: Tensor) -> Tensor:
        ctx.save_for_backward(backward_factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return grad * factor, None, None


def scaled_apart(x: Tensor, factor: Tensor, backward_factor: Tensor) -> Tensor:
    """x [B, C, H, W] times `factor` [B], and in the backward pass the gradient times `backward_factor` [B]."""
    scaled: Tensor = _Scale.apply(x, _per_image(factor, x), _per_image(backward_factor, x))
    return scaled


def _per_image(factor: Tensor, x: Tensor) -> Tensor:
    return factor.to(x.dtype)[:, None, None, None]
