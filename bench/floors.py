"""The least time that the parts of a training step can take on a machine: work over measured rates.

FLOP are counted on shapes alone (1 multiply-add = 2). Bytes are those that must cross memory at least once: images,
weights, and of the network what its forward pass keeps for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.config import Config
from fastcifar.machine import Machine
from fastcifar.model import make_model
from fastcifar.optim import orthogonalize
from fastcifar.timing import copy_bytes_per_s, matrix_flop_per_s

PARTS = ("augment", "forward", "backward", "optimizer", "averaging")


class Floors:
    """FLOP and bytes of each part for one batch, and the rates of this machine."""

    def __init__(self, config: Config, chosen: Machine, batch: int) -> None:
        on_card = chosen.device.type == "cuda"
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # convolutions may use it in fp32
        self.flop_per_s = matrix_flop_per_s(chosen.device, chosen.dtype, side=8192 if on_card else 1024)
        torch.backends.cuda.matmul.allow_tf32 = before
        self.bytes_per_s = copy_bytes_per_s(chosen.device, mib=1024 if on_card else 64)

        model = make_model(config.network, chosen.scale, 10, config.norm, 0).to("meta").train()
        forward_flop, flop, kept_values = _count(model)
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        kept = batch * kept_values * chosen.dtype.itemsize
        pixels = batch * 32 * 32 * 3
        self.flop = {"forward": batch * forward_flop, "backward": batch * (flop - forward_flop),
                     "optimizer": _optimizer_flop(model, config)}  # fmt: skip
        self.bytes = {
            "augment": pixels * (1 + chosen.dtype.itemsize),
            "forward": kept,  # written once
            "backward": kept,  # read once
            "optimizer": weights * 4 * 5,  # reads weight, gradient, momentum; writes weight, momentum
            "averaging": weights * 4 * 3,  # reads weight and mean; writes mean
        }

    def parts_ms(self) -> dict[str, float]:
        """Floor of each part, and of the step (all but averaging, which is not in every step)."""
        floor = {p: 1e3 * max(self._flop_s(p), self._bytes_s(p)) for p in PARTS}
        return {**floor, "step": sum(floor[p] for p in PARTS if p != "averaging")}

    def why(self) -> dict[str, str]:
        """What bounds each part."""
        bound = {p: "arithmetic" if self._flop_s(p) > self._bytes_s(p) else "memory" for p in PARTS}
        return {**bound, "step": "the sum"}

    def _flop_s(self, part: str) -> float:
        return self.flop.get(part, 0.0) / self.flop_per_s

    def _bytes_s(self, part: str) -> float:
        return self.bytes[part] / self.bytes_per_s


def _optimizer_flop(model: torch.nn.Module, config: Config) -> float:
    """Of one optimizer step; only Muon's matrix products count."""
    with FlopCounterMode(display=False) as counter:
        for p in model.parameters():
            if config.optimizer == "muon" and p.requires_grad and p.ndim == 4:
                orthogonalize(torch.empty(1, len(p), p[0].numel(), device="meta"))
    return counter.get_total_flops()


def _count(model: torch.nn.Module) -> tuple[float, float, float]:
    """Per image: FLOP of the forward pass, FLOP of both passes, values kept between them."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in weights and t.ndim == 4:  # activations, each once
            kept[t.untyped_storage()._cdata] = t
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            logits = model(torch.empty(2, 3, 32, 32, device="meta"))
        forward = counter.get_total_flops()
        loss = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device="meta"))
        loss.backward()
    return forward / 2, counter.get_total_flops() / 2, sum(t.numel() for t in kept.values()) / 2
