"""Computes lower bounds ("floors") for the time of each part of a training step, for `bench.step`.

A floor is the FLOP of a part over the measured rate of a matrix product, or its bytes over the measured rate of a copy,
whichever takes longer. FLOP are counted on shapes alone (1 multiply-add = 2). Bytes are those that must cross memory at
least once: images, weights, and the activations that the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastcifar.config.config import Config
from fastcifar.models.networks import make_model
from fastcifar.optim.optimizers import orthogonalize
from fastcifar.training.hardware import Hardware
from fastcifar.training.rates import matrix_flop_per_s, repeats_s

PARTS = ("augment", "forward", "backward", "optimizer", "averaging")


def copy_bytes_per_s(device: torch.device, mib: int = 64) -> float:
    """Bytes read and written per second by copying a tensor, best of five: an upper bound for work that moves data."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(repeats_s(lambda: target.copy_(source), device, repeats=5))


class Floors:
    """FLOP and bytes of each part for one batch, and the rates of this machine."""

    def __init__(self, config: Config, hardware: Hardware, batch: int) -> None:
        on_card = hardware.device.type == "cuda"
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # convolutions may use it in fp32
        self.flop_per_s = matrix_flop_per_s(hardware.device, hardware.dtype, 8192 if on_card else 1024)
        torch.backends.cuda.matmul.allow_tf32 = before
        self.bytes_per_s = copy_bytes_per_s(hardware.device, mib=1024 if on_card else 64)

        model = make_model(config.model, num_classes=10, seed=0).to("meta").train()
        forward_flop, flop, kept_values = _count(model)
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        kept_bytes = batch * kept_values * hardware.dtype.itemsize
        pixels = batch * 32 * 32 * 3
        self.flop = {"forward": batch * forward_flop, "backward": batch * (flop - forward_flop),
                     "optimizer": _optimizer_flop(model, config)}  # fmt: skip
        self.bytes = {
            "augment": pixels * (1 + hardware.dtype.itemsize),
            "forward": kept_bytes,  # written once
            "backward": kept_bytes,  # read once
            "optimizer": weights * 4 * 5,  # reads weight, gradient, momentum; writes weight, momentum
            "averaging": weights * 4 * 3,  # reads weight and mean; writes mean
        }

    def parts_ms(self) -> dict[str, float]:
        """Floor of each part, and of the step: the sum of all parts but averaging, which is not in every step."""
        floor = {part: 1e3 * max(self._flop_s(part), self._bytes_s(part)) for part in PARTS}
        return {**floor, "step": sum(floor[part] for part in PARTS if part != "averaging")}

    def reasons(self) -> dict[str, str]:
        """Whether arithmetic or memory bounds each part."""
        bound = {part: "arithmetic" if self._flop_s(part) > self._bytes_s(part) else "memory" for part in PARTS}
        return {**bound, "step": "the sum"}

    def _flop_s(self, part: str) -> float:
        return self.flop.get(part, 0.0) / self.flop_per_s

    def _bytes_s(self, part: str) -> float:
        return self.bytes[part] / self.bytes_per_s


def _optimizer_flop(model: torch.nn.Module, config: Config) -> float:
    """FLOP of one optimizer step. Only the matrix products of Muon count."""
    with FlopCounterMode(display=False) as counter:
        for p in model.parameters():
            if config.optimizer.name == "muon" and p.requires_grad and p.ndim == 4:
                orthogonalize(torch.empty(1, len(p), p[0].numel(), device="meta"))
    return counter.get_total_flops()


def _count(model: torch.nn.Module) -> tuple[float, float, float]:
    """Per image: FLOP of the forward pass, FLOP of both passes, activation values kept between them."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in weights and t.ndim == 4:  # activations, each counted once
            kept[t.untyped_storage()._cdata] = t
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            logits = model(torch.empty(2, 3, 32, 32, device="meta"))
        forward = counter.get_total_flops()
        loss = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64, device="meta"))
        loss.backward()
    return forward / 2, counter.get_total_flops() / 2, sum(t.numel() for t in kept.values()) / 2
