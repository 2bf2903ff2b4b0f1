"""The kernels of the update and of the loss on a CPU, by Triton's interpreter: python update_cases.py

Prints a line of JSON: per case what was found. Run with TRITON_INTERPRET=1, in a process of its own, because Triton
reads it when it is imported.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from conftest import QUICK, make_dataset, task_of
from interpreted import lighten
from torch import Tensor, nn
from triton.runtime import interpreter

from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import with_settings
from fastcifar.config.shapes import Shape, Stage
from fastcifar.models.head_loss import head_loss, plain_head_loss
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim import fused_update
from fastcifar.optim.fused_update import FusedUpdate
from fastcifar.optim.optimizers import make_optimizers, orthogonalize, set_row
from fastcifar.training import step as step_module
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((64, 24, 3), (96, 12, 3), (96, 48, 1), (160, 3, 1), (20, 9, 3), (128, 16, 3))
"""Rows, channels and kernel of filters: one tile and several, more rows than columns, sizes that fill no tile."""
BLOCK = 8192
"""Numbers of an interpreted program: each costs milliseconds, however small. One case has the kernels' own."""


def dot_in_bf16(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
    """The interpreter keeps bf16 as whole numbers and multiplies those."""
    a, b = (t.data.astype(np.uint32) << 16 if t.data.dtype == np.uint16 else t.data for t in (a, b))
    a, b = (t.view(np.float32) if t.dtype == np.uint32 else t for t in (a, b))
    return interpreter.TensorHandle(np.matmul(a, b, dtype=d.data.dtype) + d.data, d.dtype.scalar)


class Filters(nn.Module):
    """Filters and a head: all that an update looks at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(c, r, k, bias=False) for r, c, k in SHAPES])
        self.head = nn.Linear(8, 10, bias=False)
        self.to(memory_format=torch.channels_last)


def as_matrix(filters: Tensor) -> Tensor:
    return filters.detach().permute(0, 2, 3, 1).flatten(1).double()


def muon(dtype: str, rank: int | None = None) -> dict[str, dict[str, float]]:
    """By filter: how far the kernels' direction is from the optimizer's, and both from fp64, as shares of its norm."""
    twins = [Filters() for _ in range(2)]
    optimizers = [make_optimizers(twin, RECIPES["speedrun94"], capturable=True) for twin in twins]
    update = FusedUpdate(twins[1], optimizers[1], DTYPES[dtype])  # type: ignore[arg-type]
    update.row.copy_(torch.tensor([[1.0, 0.6]]))
    before = [layer.weight.detach().clone() for layer in twins[0].layers]
    grads = []
    for plain, kernel in zip(*(twin.layers for twin in twins), strict=True):
        g = torch.randn(plain.weight.shape)
        if rank:
            g = (torch.randn(len(g), rank) @ torch.randn(rank, g[0].numel())).view_as(g) + 0.02 * g
        grads.append(g.to(DTYPES[dtype]).to(memory_format=torch.channels_last))
        update.arena.seen(kernel.weight).grad = grads[-1]
        plain.weight.grad = grads[-1].float()
    set_row(optimizers[0], *update.row[0])
    optimizers[0][0].step()
    for group in update.groups:
        group.update(update.updates)
    found = {}
    for g, old, *weights in zip(grads, before, *([layer.weight for layer in t.layers] for t in twins), strict=True):
        exact = orthogonalize(as_matrix(g)[None])[0]
        plain, kernel = (as_matrix(old * (len(old) ** 0.5 / old.norm()) - w) for w in weights)
        shares = {"twin": kernel - plain, "exact": kernel - exact, "plain": plain - exact}
        found[str(tuple(g.shape))] = {name: (off.norm() / exact.norm()).item() for name, off in shares.items()}
    return found


def orthogonalize_in_bf16(rank: int | None) -> float:
    """How far the optimizer's own iteration is from fp64 when its tensors are rounded to bf16, as it does on a card."""
    torch.manual_seed(1)
    x = torch.randn(1, 64, 216)
    if rank:
        x = torch.randn(1, 64, rank) @ torch.randn(1, rank, 216) + 0.02 * x
    exact = orthogonalize(x.double())
    return ((orthogonalize(x.bfloat16()).double() - exact).norm() / exact.norm()).item()


def head(dtype: str, batch: int, channels: int, size: tuple[int, int], classes: int, ties: bool) -> dict[str, float]:
    """Largest difference of loss and gradients from plain torch, relative to the largest value of each."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *size)
    x = (x * 2).round() if ties else x
    features = x.to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    weight, labels = torch.randn(classes, channels), torch.randint(classes, (batch,))
    given = (features, weight, labels, 4 / channels, 0.2)
    results = [(f.d_features, f.d_weight.sum(0), f.losses.sum()) for f in (plain_head_loss(*given), head_loss(*given))]
    names = ("d_features", "d_weight", "loss")
    return {name: ((a.float() - b.float()).abs().amax() / a.float().abs().amax()).item()
            for name, a, b in zip(names, *results, strict=True)}  # fmt: skip


def small_task(**settings: Any) -> Task:
    """Two steps an epoch, two image sizes, a network whose filters have three numbers of rows."""
    shape = Shape(stem=8, stages=(Stage(width=16), Stage(width=20, kernel=2),
                                  Stage(width=32, then=(1, 3), inner=16, residual=True)))  # fmt: skip
    config = with_settings(QUICK, epochs=2, batch_size=16, low_res_px=20, low_res_until=0.5, swa_start=None, **settings)
    config = replace(config, model=replace(config.model, shape=shape))
    return task_of(config, make_dataset(32, 20))


def whole_steps(optimizer: str, **settings: Any) -> dict[str, float]:
    """A recorded step on the CPU, with and without the kernels: largest difference of all that a run keeps."""
    trees, sizes = [], []
    for kernels in (False, True):
        task = small_task(optimizer=optimizer, **settings)
        state = initial_state(task, Stopwatch(task.hardware.device))
        assert isinstance(state.model, ResNet9)
        update = FusedUpdate(state.model, state.optimizers, torch.float32) if kernels else None
        step = step_module.CapturedStep(task, state, state.model, lambda work: work, update)
        blocks = task.executor.blocks(task.plans(0))
        while state.step < task.num_steps:
            block = next(blocks)
            sizes.append(block.images.shape[1])
            state.model.train()
            step.begin(block)
            for i in range(len(block)):
                step(i)
                state.step += 1
            blocks.work_ahead()
        found = (kernels, step.next.item(), state.step, set(sizes))
        assert found == (kernels, 4, 4, {20, 32}), found
        tree = state.tree()
        momenta = {str(i): m for i, m in enumerate(m for held in tree["optimizers"] for m in held)}
        trees.append({**tree["model"], **momenta, "loss_sum": tree["loss_sum"]})
    return {name: ((t.double() - trees[1][name].double()).norm() / t.double().norm().clamp(min=1e-3)).item()
            for name, t in trees[0].items()}  # fmt: skip


def equal_bits_and_guards() -> dict[str, float]:
    """Two updates of the same numbers give the same bits, and nothing between the tensors is written."""
    results, spoiled = [], 0
    for _ in range(2):
        model = Filters()
        optimizers = make_optimizers(model, RECIPES["speedrun94"], capturable=True)
        update = FusedUpdate(model, optimizers, torch.float32)  # type: ignore[arg-type]
        update.row.copy_(torch.tensor([[1.0, 0.6]]))
        arena, torch_generator = update.arena, torch.Generator().manual_seed(0)
        used = torch.zeros(len(arena.weights), dtype=torch.bool)
        for p in arena.parameters:
            used[arena.first[p] :][: p.numel()] = True
        buffers = (arena.weights, arena.momenta, arena.low, update.updates)
        for buffer in buffers:
            buffer[~used] = 77
        for p in arena.parameters:
            arena.seen(p).grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=torch_generator))
        for group in update.groups[1:]:
            group.update(update.updates)
        features = torch.randn(5, 8, 2, 2, generator=torch_generator).to(memory_format=torch.channels_last)
        loss = head_loss(features, model.head.weight, torch.arange(5), 1.0, 0.1)
        update.finish(loss, torch.zeros(()), torch.zeros(2, dtype=torch.long))
        spoiled += sum(int((buffer[~used] != 77).sum()) for buffer in buffers)
        results.append(torch.cat([buffer[used] for buffer in buffers]))
    return {"different": float(not torch.equal(*results)), "spoiled": float(spoiled)}


def main() -> None:
    lighten()
    told: dict[str, Any] = {}
    with mock.patch.object(interpreter.InterpreterBuilder, "create_dot", dot_in_bf16):
        told["muon fp32"] = muon("fp32")
        fused_update.BLOCK = BLOCK
        told["muon bf16"] = muon("bf16")
        told["muon bf16 of rank 8"] = muon("bf16", rank=8)
        told["plain bf16"] = {"": orthogonalize_in_bf16(None), "of rank 8": orthogonalize_in_bf16(8)}
        told["head"] = {
            str(case): head(*case)
            for case in (("fp32", 37, 40, (3, 3), 10, False), ("fp32", 20, 64, (2, 2), 100, False),
                         ("fp32", 16, 24, (3, 3), 10, True), ("fp32", 3, 24, (1, 1), 2, False),
                         ("fp16", 37, 40, (3, 3), 10, False), ("bf16", 37, 40, (3, 3), 10, False))
        }  # fmt: skip
        told["bits and guards"] = equal_bits_and_guards()
        partly = {"train_stem": "low-res", "cool_first_stage": (0.25, 0.75)}  # the last step has no first stage
        told["steps muon, partly fixed"] = whole_steps("muon", lr_peak=0.02, **partly)
        told["steps sgd"] = whole_steps("sgd", lr_peak=0.02)
        model = initial_state(small_task(), Stopwatch(torch.device("cpu"))).model
        for dtype in ("fp32", "bf16"):
            told[f"self-check {dtype}"] = fused_update.largest_difference(model, RECIPES["speedrun94"], DTYPES[dtype])  # type: ignore[arg-type]
        cooled = with_settings(RECIPES["speedrun94"], cool_first_stage=(0.6, 0.8))
        told["self-check fp32, cooled"] = fused_update.largest_difference(model, cooled, torch.float32)  # type: ignore[arg-type]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
