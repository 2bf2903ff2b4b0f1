"""Stochastic Weight Averaging (Izmailov et al. 2018, arXiv:1803.05407): the running mean of the weights of the tail.

The loop adds weights during the tail; the end of the run takes the mean and refreshes batch norm. The mean is kept
in fp32 in every precision of the model: fp16 would lose the small differences between successive weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

REFRESH_IMAGES = 10_000
"""Training images that re-estimate the batch-norm statistics: few enough to cost a small part of an epoch."""


class RunningMean:
    """Mean of all weights added: mean += (weights - mean) / count, as torch.optim.swa_utils.AveragedModel does."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self.mean = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in model.named_parameters()}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Adds the current weights of the model to the mean. Does not wait for the device."""
        self.count += 1
        weights = [p.float() for p in model.parameters()]
        torch._foreach_lerp_(list(self.mean.values()), weights, 1 / self.count)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Writes the mean into the weights of the model, in place and in one launch. Its statistics stay."""
        torch._foreach_copy_(list(model.parameters()), list(self.mean.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `add` changes besides the count."""
        return {f"mean.{n}": v for n, v in self.mean.items()}

    def state(self) -> dict[str, Tensor | int]:
        """Plain containers for a checkpoint."""
        return {"count": self.count, **self.tensors()}

    def load(self, state: dict[str, Tensor | int]) -> None:
        """Restores `state()`."""
        self.count = int(state["count"])
        for name, v in self.tensors().items():
            v.copy_(torch.as_tensor(state[name]))


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The modules whose statistics a refresh estimates."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Re-estimates every batch norm's mean and variance over equal batches [B, 3, H, W] of augmented training images.

    Every batch counts the same: the k-th moves the statistics by 1/k, a number that the host knows (torch's own
    momentum=None reads its count back from the device, a wait for each batch norm and batch). In a recorded refresh
    the weights 1/k are part of the CUDA graph. Compiled code is left out: it would be compiled for each k.
    Returns the number of batches.
    On any error, an empty iterable included (ValueError), the old statistics are put back.
    """
    norms = batch_norms(model)
    if not norms:
        return 0
    before = [(m.momentum, [b.clone() for b in m.buffers()]) for m in norms]
    was_training, count = model.training, 0
    try:
        for m in norms:
            m.reset_running_stats()
        model.train()
        for count, x in enumerate(batches, start=1):
            for m in norms:
                m.momentum = 1 / count
            model.forward(x)
        if not count:
            raise ValueError("batch-norm refresh got no batches")
    except BaseException:
        for m, (_, stats) in zip(norms, before, strict=True):
            for buffer, value in zip(m.buffers(), stats, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for m, (momentum, _) in zip(norms, before, strict=True):
            m.momentum = momentum
        model.train(was_training)
    return count
