"""The weights of a run in one buffer, their momenta in a second and their low-precision copies in a third.

The parameters of the model stay what they are, weights in fp32, now views of the first buffer: checkpoints, averages
and model files see no difference. A forward pass borrows the copies in their place, so autograd sees tensors in the
dtype of the run's products, and neither a weight nor a gradient is cast in a step. All three buffers have one layout.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

ALIGN = 64
"""Numbers; each tensor begins at a multiple of it. That of `kernels.py`."""


class Arena:
    """Moves the parameters of a model, and the momenta of its optimizers, into buffers of its own."""

    def __init__(self, model: nn.Module, optimizers: list[Optimizer], dtype: torch.dtype) -> None:
        """dtype: of the copies. The filters, classifiers and biases of convolutions have one that is lent."""
        self.parameters: list[Tensor] = list(model.parameters())
        self.first: dict[Tensor, int] = {}
        total = 0
        for p in self.parameters:
            self.first[p] = total
            total += -(-p.numel() // ALIGN) * ALIGN
        self.weights = torch.zeros(total, device=self.parameters[0].device)
        self.momenta, self.low = torch.zeros_like(self.weights), torch.zeros_like(self.weights, dtype=dtype)
        with torch.no_grad():
            for p in self.parameters:
                p.data = self._view(self.weights, p).copy_(p)
            for optimizer in optimizers:
                for p, kept in optimizer.state.items():
                    kept["momentum_buffer"] = self._view(self.momenta, p).copy_(kept["momentum_buffer"])
        self.copies: dict[Tensor, Tensor] = {
            p: self._view(self.low, p).requires_grad_(p.requires_grad)
            for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
            for p in layer.parameters(recurse=False)
        }  # fmt: skip
        self.borrowers = [(layer, name, p, self.copies[p]) for layer in model.modules()
                          for name, p in layer.named_parameters(recurse=False) if p in self.copies]  # fmt: skip
        self.refresh()

    def _view(self, buffer: Tensor, p: Tensor) -> Tensor:
        """The part of a buffer that belongs to p, in the shape and layout of p."""
        return buffer[self.first[p] :].as_strided(p.shape, p.stride())

    @torch.no_grad()
    def refresh(self) -> None:
        """Writes the copies anew: to be called when something else than the update has changed the weights."""
        self.low.copy_(self.weights)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Context in which the model computes with the copies."""
        for layer, name, _, copy in self.borrowers:
            layer._parameters[name] = copy  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer, name, p, _ in self.borrowers:
                layer._parameters[name] = p

    def seen(self, p: Tensor) -> Tensor:
        """What autograd sees of a parameter, and so what gets its gradient."""
        return self.copies.get(p, p)
