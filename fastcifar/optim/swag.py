"""SWAG (Maddox et al. 2019, arXiv:1902.02476): a Gaussian over the weights, from the weights that SWA averages.

Its mean is SWA's. Its covariance is half the variance of each weight in the tail, and half a matrix of low rank made
of the deviations of the last R weights added, each from the running mean of its time.

Included is every trained weight. What training leaves as it is (whitening filters, fixed scales of batch norms, frozen
weights) has no spread and is not sampled. Filters under Muon are included as they are: Muon sets their norm in each
step, their mean is shorter than that, and the variance of a sample gives back about what the mean has lost.
"""

import math

import torch
from torch import Tensor, nn

from fastcifar.optim.averaging import RunningMean

SMALLEST_VARIANCE = 1e-30
"""Variances below it are raised to it, as in the paper's own program."""


class Swag(RunningMean):
    """The running mean, with the running variance and the last `rank` deviations of the trained weights, all fp32."""

    def __init__(self, model: nn.Module, rank: int) -> None:
        super().__init__(model)
        self.rank = rank
        self.trained = [n for n, p in model.named_parameters() if p.requires_grad]
        self.variance = {n: torch.zeros_like(self.mean[n]) for n in self.trained}
        self.deviations = {n: self._rows_like(self.mean[n]) for n in self.trained}

    def _rows_like(self, mean: Tensor) -> Tensor:
        """Zeros [rank, ...], each row in the layout of the weight: else each weight would be copied on its own."""
        strides = (mean.numel(), *mean.stride())
        return torch.empty_strided((self.rank, *mean.shape), strides, dtype=mean.dtype, device=mean.device).zero_()

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Adds the current weights of the model. Does not wait for the device.

        The variance by Welford's update: the mean of the squares less the square of the mean is the same number, but
        in fp32 it loses a spread that is small beside the weight.
        """
        weights = [p.float() for p in model.parameters() if p.requires_grad]
        mean = [self.mean[n] for n in self.trained]
        before = torch._foreach_sub(weights, mean)
        super().add(model)
        deviations = torch._foreach_sub(weights, mean)
        row = (self.count - 1) % self.rank  # the host knows it
        torch._foreach_copy_([d[row] for d in self.deviations.values()], deviations)
        torch._foreach_mul_(deviations, before)
        torch._foreach_lerp_(list(self.variance.values()), deviations, 1 / self.count)

    def tensors(self) -> dict[str, Tensor]:
        spread = {"variance": self.variance, "deviations": self.deviations}
        return super().tensors() | {f"{kind}.{n}": v for kind, values in spread.items() for n, v in values.items()}

    def gaussian(self) -> dict[str, Tensor]:
        """`variance.<name>` and `deviations.<name>` [min(count, rank), ...], the oldest deviation first."""
        columns = min(self.count, self.rank)
        first = self.count % self.rank if self.count > self.rank else 0
        return {f"variance.{n}": v for n, v in self.variance.items()} | {
            f"deviations.{n}": v.roll(-first, 0)[:columns] for n, v in self.deviations.items()
        }


@torch.no_grad()
def draw_sample(model: nn.Module, mean: dict[str, Tensor], gaussian: dict[str, Tensor], seed: int) -> None:
    """Writes a sample of the Gaussian into the trained weights of the model. Its batch norms are then to be refreshed.

    mean + sqrt(variance / 2) z1 + deviations z2 / sqrt(2 (R - 1)), with standard normal z1 for each weight and z2 [R]
    for all of them together. gaussian: as `Swag.gaussian` gives it. Draws are made on the CPU from the seed alone.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.named_parameters())
    names = [key.removeprefix("variance.") for key in gaussian if key.startswith("variance.")]
    columns = len(gaussian[f"deviations.{names[0]}"])
    z2 = torch.randn(columns, generator=generator) / math.sqrt(2 * max(columns - 1, 1))
    for name in names:
        variance, deviations = gaussian[f"variance.{name}"], gaussian[f"deviations.{name}"]
        z1 = torch.randn(variance.shape, generator=generator).to(variance.device)
        low_rank = torch.tensordot(z2.to(deviations.device), deviations, dims=1)
        weights[name].copy_(mean[name] + (variance.clamp_min(SMALLEST_VARIANCE) / 2).sqrt() * z1 + low_rank)
