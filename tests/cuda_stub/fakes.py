"""Steps on fake tensors, which have device, dtype and strides but no memory: torch refuses to mix devices among them.

cuDNN is left on, so that torch chooses layouts as on a card. What comes out is fake too, so nothing here can be read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import subject
import torch
import torch.nn.functional as F
from observe import Layouts, make_task
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

SIZES = (22, 32)


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Every weight and statistic becomes its fake, on the same device and in the same layout."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                tensors[name] = mode.from_tensor(tensor) if tensor is not None else None


def fake_batch(size: int, dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor]:
    x = torch.empty(20, 3, size, size, device=device, dtype=dtype, memory_format=torch.channels_last)
    return x, torch.zeros(20, dtype=torch.long, device=device)


def steps(
    spoil: Callable[[nn.Module], None] | None = None, batch_device: str = "cuda", **settings: Any
) -> dict[str, Any]:
    """A step of each image size, rates as tensors. `spoil` may put a fault into the network."""
    task = make_task(**settings)
    model = copy.deepcopy(task.network).to("cuda").train()
    if spoil:
        spoil(model)
    mode = FakeTensorMode()
    make_fake(model, mode)
    with mode, Layouts() as layouts:
        optimizers = subject.make_optimizers(model, task.config, task.can_capture)
        for size in SIZES:
            x, y = fake_batch(size, task.hardware.dtype, batch_device)
            lr, momentum = torch.zeros(2, device="cuda").unbind()
            with subject.autocast(task.hardware):
                logits = model(x)
            F.cross_entropy(logits, y, label_smoothing=task.config.optimizer.label_smoothing).backward()
            if task.can_capture:
                subject.set_row(optimizers, lr, momentum)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return {
        "dtype": str(task.hardware.dtype).removeprefix("torch."),
        "layouts": layouts.seen,
        "weights": sorted({p.device.type for p in model.parameters()}),
    }


def nchw_weight(model: nn.Module) -> None:
    """The third convolution's filters lie as they would without channels_last."""
    convolution = [m for m in model.modules() if isinstance(m, nn.Conv2d)][2]
    convolution.weight.data = convolution.weight.data.contiguous()


CASES: dict[str, Callable[[], Any]] = {
    "bf16 muon": partial(steps, precision="bf16"),
    "bf16 sgd": partial(steps, precision="bf16", optimizer="sgd"),
    "fp32 muon": partial(steps, precision="fp32"),
    "fp32 sgd": partial(steps, precision="fp32", optimizer="sgd"),
    "fp16 sgd": partial(steps, precision="fp16", optimizer="sgd"),
    "bf16 gn-ws": partial(steps, precision="bf16", norm="gn-ws"),
    "bf16 resnet18": partial(steps, precision="bf16", network="resnet18"),
    "bf16 wide": partial(steps, precision="bf16", scale="wide"),
    "fault: NCHW weight": partial(steps, nchw_weight, precision="bf16"),
    "fault: batch on the host": partial(steps, batch_device="cpu", precision="fp32"),
}
