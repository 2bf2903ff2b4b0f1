"""Parameter groups and optimizers: Muon, SGD for CUDA graphs, torch's fused SGD, apex's FusedSGD.

Optimizers know nothing of schedules: `set_row` writes a row of the schedule's table into their groups before a step.
"""

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fastcifar.config.config import Config
from fastcifar.config.config import Optimizer as OptimizerSettings
from fastcifar.optim.apex import make_apex_sgd
from fastcifar.optim.cooling import set_apart

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's quintic iteration."""


def orthogonalize(matrices: Tensor, steps: int = 3) -> Tensor:
    """[M, R, C] -> [M, R, C], each matrix replaced by nearly its closest semi-orthogonal one.

    Newton-Schulz iteration with Muon's quintic coefficients (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon):
    the singular values end near 1, not at 1. One batched product for all matrices of a shape.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    for _ in range(steps):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)  # a x + (b gram + c gram^2) x
    return (wide if x.shape[1] <= x.shape[2] else wide.mT).to(matrices.dtype)


class _Uncompiled(Optimizer):
    """Methods of torch's optimizers without the wrappers that import torch's compiler: a second of every start."""

    add_param_group: Any = inspect.unwrap(Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(Optimizer.load_state_dict)


class CapturableOptimizer(_Uncompiled):
    """Base of optimizers that a CUDA graph can hold, with learning rate and momentum as tensors, also in fp16.

    An overflow undoes the step on the device. As torch's fused optimizers do, `_step_supports_amp_scaling` makes
    GradScaler set `grad_scale` and `found_inf` for a step, where it would read back whether a gradient overflowed.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: Any, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        _start_momenta(self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is None:
            return self.update()
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_([p.grad for p in weights], self.grad_scale)  # type: ignore[attr-defined]
        tensors = [*weights, *(self.state[p]["momentum_buffer"] for p in weights)]
        before, overflow = torch._foreach_mul(tensors, 1), found_inf > 0  # copies, in one launch
        self.update()
        for tensor, value in zip(tensors, before, strict=True):
            torch.where(overflow, value, tensor, out=tensor)
        return None

    def update(self) -> None:
        """New momenta and weights from the gradients."""
        raise NotImplementedError


def _start_momenta(optimizer: Optimizer) -> None:
    """Gives every weight a momentum of zero, so that it exists before the first step, which may be recorded."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


class UncompiledSGD(_Uncompiled, SGD):
    """torch's SGD."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        inspect.unwrap(SGD.step)(self, closure)


class Muon(CapturableOptimizer):
    """Nesterov momentum whose update is orthogonalised, for filters [out, in, h, w] seen as matrices [out, in*h*w].

    torch.optim.Muon takes matrices only and one at a time. As in airbench94_muon each filter bank is kept at a fixed
    norm, sqrt(out), which takes the place of weight decay.
    """

    def update(self) -> None:
        for group in self.param_groups:
            filters = [p for p in group["params"] if p.grad is not None]
            if not filters:  # a first stage that is fixed by now
                continue
            grads = [p.grad for p in filters]
            buffers = [self.state[p]["momentum_buffer"] for p in filters]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            updates = torch._foreach_mul(buffers, group["momentum"])
            torch._foreach_add_(updates, grads)
            same_shape = defaultdict(list)
            for i, p in enumerate(filters):
                same_shape[p.shape].append(i)
            directions = [orthogonalize(torch.stack([_as_matrix(updates[i]) for i in rows]))
                          for rows in same_shape.values()]  # fmt: skip
            torch._foreach_mul_(directions, group["lr"])
            factors = torch._foreach_norm(filters)
            torch._foreach_reciprocal_(factors)
            torch._foreach_mul_(factors, [len(p) ** 0.5 for p in filters])
            torch._foreach_mul_(filters, factors)
            for (_, in_channels, height, width), rows, stacked in zip(
                same_shape, same_shape.values(), directions, strict=True
            ):
                shaped = stacked.unflatten(2, (height, width, in_channels)).permute(0, 1, 4, 2, 3)
                torch._foreach_sub_([filters[i] for i in rows], list(shaped))


def _as_matrix(filters: Tensor) -> Tensor:
    """[out, in, h, w] -> [out, h*w*in]: a view where the filters are channels_last. Muon does not see the order."""
    return filters.permute(0, 2, 3, 1).flatten(1)


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Filters, classifier, biases. `lr_scale` is relative to the schedule; decay touches neither norms nor biases.

    Nesterov is set per group: torch rejects it as an argument when the first momentum is 0.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    head = [p for n, p in named if n == "head.weight"]
    small = [p for _, p in named if p.ndim <= 1]
    filters = [p for n, p in named if p.ndim > 1 and n != "head.weight"]
    decay = settings.weight_decay
    return [
        {"params": filters, "lr_scale": 1.0, "weight_decay": decay, "nesterov": True},
        {"params": head, "lr_scale": settings.head_lr_scale, "weight_decay": decay, "nesterov": True},
        {"params": small, "lr_scale": settings.bias_lr_scale, "weight_decay": 0.0, "nesterov": True},
    ]


def make_optimizers(model: nn.Module, config: Config, capturable: bool = False) -> list[Optimizer]:
    """Optimizers that together hold every trainable parameter once. ValueError when apex is chosen and not installed.

    capturable: the step is to be part of a CUDA graph, so learning rate and momentum come as tensors.
    """
    settings, rates = config.optimizer, {"lr": config.schedule.peak, "momentum": config.optimizer.momentum}
    filters, *rest = parameter_groups(model, settings)
    if settings.name == "muon":
        sgd = _fused_sgd(rest, **rates)
        for group in sgd.param_groups:
            group["fixed_momentum"] = True  # the table's momentum is Muon's
        optimizers: list[Optimizer] = [Muon([filters], **rates), sgd] if filters["params"] else [sgd]  # all frozen
    elif settings.name == "apex-sgd":
        optimizers = [make_apex_sgd([filters, *rest], **rates)]
    elif capturable:
        from fastcifar.optim.capturable_sgd import CapturableSGD

        optimizers = [CapturableSGD([filters, *rest], **rates)]
    else:
        optimizers = [_fused_sgd([filters, *rest], **rates)]
    if config.cools_first_stage:
        set_apart(optimizers, model)
    return optimizers


def _fused_sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> SGD:
    """torch's SGD whose momentum exists from the start.

    torch leaves it uninitialised in the first step (seen in 2.15): if fp16 overflow skips that step, it stays garbage.
    """
    sgd = UncompiledSGD(groups, lr=lr, momentum=momentum, fused=True)
    _start_momenta(sgd)
    return sgd


def set_row(
    optimizers: list[Optimizer], lr: float | Tensor, momentum: float | Tensor, cooled: float | Tensor = 1.0
) -> None:
    """Writes a row of the schedule's table into all groups: numbers, or tensors of no dimension on the device.

    cooled: factor of the learning rate of a first stage that is trained for a part of the run.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = (lr * cooled if group.get("cools") else lr) * group["lr_scale"]
            if not group.get("fixed_momentum"):
                group["momentum"] = momentum
