"""The operators of one training step, with their arithmetic and the bytes they move, traced on the meta device.

Nothing is computed. `bench.predict` turns them into seconds. The module is imported; it has no command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastcifar.models import fused


class Op(NamedTuple):
    """An operator of a step: its phase, name, FLOP, and bytes read and written."""

    phase: str
    name: str
    flop: float
    moved: float


class Tracer(TorchDispatchMode):
    """Notes every operator that computes something; views and allocations are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.phase = "forward"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("empty", "empty_like", "new_empty", "detach", "lift_fresh"):
            count = flop_registry.get(func.overloadpacket)
            flop = float(count(*args, **(kwargs or {}), out_val=out)) if count else 0.0
            self.ops.append(Op(self.phase, name, flop, float(sum(map(_bytes, (args, kwargs, out))))))
        return out

    def launch(self, name: str, grid: Any, tiling: Any, *arguments: Any, **constants: Any) -> None:
        """Takes the place of `fused.launch`: notes a kernel, which goes through each of its tensors once."""
        self.ops.append(Op(self.phase, name, 0.0, float(_bytes(arguments))))


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


def fits_all(x: Tensor, plus: Tensor | None) -> bool:
    """Takes the place of `fused.fits`, which asks for a card."""
    return True


def trace(
    model: nn.Module, forward: Callable[[Tensor], Tensor], batch: int, size: int, classes: int, dtype: torch.dtype,
    update: Callable[[], None] | None,
) -> list[Op]:  # fmt: skip
    """Operators of a training step, or with `update` None of a classification, on images [batch, 3, size, size].

    Batch norms that are fused count as their kernels.
    """
    x = torch.empty(batch, 3, size, size, device="meta", dtype=dtype).contiguous(memory_format=torch.channels_last)
    y = torch.empty(batch, device="meta", dtype=torch.long)
    model.train(update is not None)
    tracer = Tracer()
    launches, fits = mock.patch.object(fused, "launch", tracer.launch), mock.patch.object(fused, "fits", fits_all)
    with tracer, launches, fits, torch.set_grad_enabled(update is not None):
        logits = forward(x)
        if update:
            loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
            tracer.phase = "backward"
            loss.backward()
            tracer.phase = "update"
            update()
    assert logits.shape == (batch, classes)
    return tracer.ops
