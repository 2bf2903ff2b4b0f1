"""The update of a recorded step in few launches: the arithmetic of `Muon` and SGD by the kernels of `kernels.py`.

Filters of equal rows are one group of three or four launches. The groups whose gradients are complete before the
backward pass ends are updated beside the rest of it, on a stream of their own. One more launch updates all other
weights, adds the loss to its sum and counts the step; another one takes the batch at its beginning.

The Newton-Schulz iteration is done on the Gram matrices, [R, R], alone: the same in exact arithmetic, with half of the
products. The optimizers themselves are what the kernels are compared with.

Shapes: R rows and K columns of a filter as a matrix: output channels and in * h * w, or the other way round where that
has fewer rows.
"""

import copy
import math
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastcifar.config.config import Config
from fastcifar.models.head_loss import HeadLoss, head_loss, plain_head_loss
from fastcifar.models.launch import farthest_in_norm, launch, require_close, tried
from fastcifar.models.resnet9 import ResNet9
from fastcifar.optim.arena import ALIGN, Arena
from fastcifar.optim.optimizers import NEWTON_SCHULZ, Muon, make_optimizers, set_row

BLOCK = 1024
"""Numbers of a program that goes through them one by one. No size here is tuned on a card."""
STEPS = 3
"""Newton-Schulz iterations, as `orthogonalize` has them."""
PROGRAMS = 200
"""About so many programs make the Gram matrices of a group: more than a card has multiprocessors."""
MOST_ROWS = 512
"""One multiprocessor does the Newton-Schulz iteration of a filter: 2048 rows would take it longer than the step."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference from the optimizers and the plain loss, as a share of the norm of what they give. In bf16 the
Newton-Schulz iteration of either kind is 1% off, and 4% where the gradient has a low rank."""


def run(name: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel of `kernels.py`."""
    launch(f"optim.kernels.{name}", grid, *arguments, **constants)


def _items(arena: Arena, tensors: list[Tensor], unit: int) -> Tensor:
    """The table of `kernels.py`: a row for each BLOCK numbers of each tensor."""
    rows = [(arena.first[p] // ALIGN, chunk, p.numel() // unit, which)
            for which, p in enumerate(tensors) for chunk in range(-(-p.numel() // BLOCK))]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32, device=arena.weights.device)


class MuonGroup:
    """Filters of equal rows, and all that their kernels write to. tall: output channels are the columns."""

    def __init__(self, arena: Arena, filters: list[Tensor], tall: bool, lr_scale: float, row: Tensor) -> None:
        self.arena, self.filters, self.lr_scale, self.row = arena, filters, lr_scale, row
        self.missing = 0
        """Gradients that the backward pass has still to give."""
        shapes = [(p[0].numel(), len(p)) if tall else (len(p), p[0].numel()) for p in filters]
        device, columns = arena.weights.device, [k for _, k in shapes]
        self.R, self.most_columns, self.tall = shapes[0][0], max(columns), tall
        if self.R > MOST_ROWS:
            raise ValueError(f"a filter is {self.R} x {columns[0]}; the kernels take up to {MOST_ROWS} of the less")
        self.tile = 128 if self.R % 128 == 0 else min(64, max(16, 1 << (self.R - 1).bit_length()))
        self.rows = -(-self.R // self.tile) * self.tile
        self.unit = math.gcd(16, *columns, *([self.R] if tall else []))
        self.items = _items(arena, filters, self.unit)
        self.shapes = torch.tensor([(arena.first[p] // ALIGN, k // self.unit)
                                    for p, k in zip(filters, columns, strict=True)], dtype=torch.int32,
                                   device=device)  # fmt: skip
        small = self.rows // min(64, self.tile)
        splits = min(-(-PROGRAMS // (len(filters) * small * (small + 1) // 2)), -(-self.most_columns // 128))
        self.span = -(-self.most_columns // splits // 64) * 64  # columns of a program, in whole tiles
        self.splits = -(-self.most_columns // self.span)
        self.parts = -(-self.R * self.most_columns // BLOCK)
        self.squares = torch.zeros(2, len(filters), self.parts, device=device)
        self.grams = None  # of one tile: made where it is needed
        if self.rows > self.tile:
            self.grams = torch.zeros(len(filters), self.splits, self.rows, self.rows, device=device)
        self.matrices = torch.zeros(len(filters), 5, self.rows, self.rows, dtype=arena.low.dtype, device=device)

    def update(self, updates: Tensor) -> None:
        """New weights, momenta and copies from the gradients. updates: like the arena's copies, written over."""
        arena, count, tile = self.arena, len(self.filters), min(64, self.tile)
        grads = tuple(arena.seen(p).grad for p in self.filters)
        run("prepare", (len(self.items),), arena.weights, arena.momenta, updates, grads, self.squares, self.items,
               self.row, self.parts, unit=self.unit, BLOCK=BLOCK)  # fmt: skip
        if self.grams is not None:
            run("gram", ((self.rows // tile) ** 2, self.splits, count), updates, self.shapes, self.grams, self.R,
                   self.rows, self.span, unit=self.unit, TALL=self.tall, TILE=tile, BK=64)  # fmt: skip
        run("steps", (count,), updates, self.shapes, self.grams, self.squares, self.matrices, self.R, self.rows,
               self.parts, *NEWTON_SCHULZ, unit=self.unit, TALL=self.tall, SPLITS=self.splits, STEPS=STEPS,
               TILE=self.tile, BK=tile, BLOCK=BLOCK, num_warps=8 if self.tile == 128 else 4)  # fmt: skip
        run("apply", (self.rows // tile, -(-self.most_columns // 128), count), arena.weights, arena.low, updates,
               self.shapes, self.matrices, self.squares, self.row, self.R, self.rows, self.parts, self.lr_scale,
               unit=self.unit, TALL=self.tall, SLOT=2 + (STEPS - 1) % 2, TILE=tile, COLUMNS=128, BK=tile,
               BLOCK=BLOCK)  # fmt: skip


class FusedUpdate:
    """Updates the weights that the optimizers hold; their momenta stay theirs. Loss scales are not for it."""

    def __init__(self, model: ResNet9, optimizers: list[Optimizer], dtype: torch.dtype) -> None:
        """dtype: of products and of the gradients of filters."""
        self.arena = arena = Arena(model, optimizers, dtype)
        device = arena.weights.device
        self.updates = torch.zeros_like(arena.low)
        by_rows = defaultdict[tuple[int, bool, bool], list[Tensor]](list)
        rest = dict[Tensor, tuple[float, float, float]]()
        lr_scale, cooled = 1.0, list[Tensor]()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                cools = group.get("cools", False)
                for p in group["params"]:
                    if isinstance(optimizer, Muon):
                        by_rows[min(len(p), p[0].numel()), len(p) > p[0].numel(), cools].append(p)
                        lr_scale = group["lr_scale"]
                    else:
                        momentum = group["momentum"] if group.get("fixed_momentum") else -1.0
                        rest[p] = (group["lr_scale"], group["weight_decay"], momentum)
                        cooled += [p] if cools else []
        # In the order of the network: the gradients of the first group are complete last.
        self.row, self.cooled_row = torch.zeros(1, 2, device=device), torch.zeros(1, 2, device=device)
        """Learning rate and momentum of the step, as `take` writes them; those of a first stage that cools."""
        self.groups = [MuonGroup(arena, filters, tall, lr_scale, self.cooled_row if cools else self.row)
                       for (_, tall, cools), filters in by_rows.items()]  # fmt: skip
        head = model.get_parameter("head.weight")
        self.others = [*cooled, *(p for p in rest if p is not head and p not in set(cooled))]
        self.items = _items(arena, [*self.others, head], 1)
        self.rates = torch.tensor([rest[p] for p in (*self.others, head)], device=device)
        self.cooled_scales = self.rates[: len(cooled), 0].clone()
        self.beside = torch.cuda.Stream(device) if device.type == "cuda" and len(self.groups) > 1 else None
        for muon in self.groups[1:]:
            for p in muon.filters:
                arena.seen(p).register_post_accumulate_grad_hook(partial(self._arrived, muon))

    def take(
        self,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        table: Tensor,
        counters: Tensor,
        factor: Tensor | None = None,
    ) -> list[Tensor]:
        """Batch of the next step: images [B, ...] and labels [B] from images [M, ...] and labels [M] at
        rows[counters[1]]. The step's learning rate and momentum are table[counters[0]]; factor [1]: see `cool`.
        """
        batch, n = rows.shape[1], images[0].numel()
        x, y = images.new_empty(batch, *images.shape[1:]), labels.new_empty(batch)
        run("take", (batch, -(-n // 2048)), images, labels, rows, table, counters, x, y, self.row, batch, n,
               BLOCK=2048)  # fmt: skip
        for group in self.groups:
            group.missing = len(group.filters)
        if factor is not None:
            self.cool(factor)
        return [x, y]

    def cool(self, factor: Tensor) -> None:
        """Sets the learning rates of a first stage that cools: `factor` [1] times those of the step."""
        self.cooled_row.copy_(self.row)
        self.cooled_row[:, 0] *= factor
        torch.mul(self.cooled_scales, factor, out=self.rates[: len(self.cooled_scales), 0])

    def _arrived(self, group: MuonGroup, _: Tensor) -> None:
        """Updates a group when the last of its gradients has come. Nothing reads its weights after that."""
        group.missing -= 1
        if group.missing == 0:
            if self.beside:
                self.beside.wait_stream(torch.cuda.current_stream(self.beside.device))
            with torch.cuda.stream(self.beside):
                group.update(self.updates)

    def finish(self, loss: HeadLoss, loss_sum: Tensor, counters: Tensor) -> None:
        """To be called after the backward pass: updates what is left, adds the loss, counts, clears the gradients."""
        arena = self.arena
        for group in self.groups[:1]:
            if arena.seen(group.filters[0]).grad is not None:  # else it is a first stage that is fixed by now
                group.update(self.updates)
        grads = tuple(arena.seen(p).grad for p in self.others)
        run("sgd", (len(self.items),), arena.weights, arena.low, arena.momenta, grads, loss.d_weight, self.items,
               self.rates, self.row, loss.losses, loss_sum, counters, len(loss.losses), COUNT=len(grads),
               BLOCK=BLOCK)  # fmt: skip
        if self.beside:
            torch.cuda.current_stream(self.beside.device).wait_stream(self.beside)
        for p in arena.parameters:
            arena.seen(p).grad = None


def fused_update(model: ResNet9, optimizers: list[Optimizer], config: Config, dtype: torch.dtype) -> FusedUpdate | None:
    """The update by the kernels, if those run here and agree with plain torch on random numbers; else one line says why
    and nothing has changed. Builds all of its kernels.
    """
    with tried("the fused update"):
        require_close(largest_difference(model, config, dtype), TOLERANCE[dtype])
        return FusedUpdate(model, optimizers, dtype)
    return None


def largest_difference(model: ResNet9, config: Config, dtype: torch.dtype) -> float:
    """Between two steps by the kernels and by the optimizers, over the changes of all weights and momenta, and over
    what the loss gives; inf where one has NaN. In the second step a weight of SGD has no gradient, as those of
    a fixed stem have none. The model stays as it is.
    """
    twins = [copy.deepcopy(model) for _ in range(2)]
    optimizers = [make_optimizers(twin, config, capturable=True) for twin in twins]
    update = FusedUpdate(twins[1], optimizers[1], dtype)
    generator, device = torch.Generator().manual_seed(0), update.row.device
    loss_sum, counters, largest = torch.zeros((), device=device), torch.zeros(2, device=device).long(), 0.0
    update.row.copy_(torch.tensor([[0.1, 0.6]]))
    lr, momentum = update.row[0].unbind()
    update.cool(torch.tensor([0.7], device=device))

    def draw(like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty_like(like, dtype=dtype).copy_(torch.randn(like.shape, generator=generator))

    features = torch.empty(37, len(model.head.weight[0]), 3, 3, device=device).to(memory_format=torch.channels_last)
    start = [[p.detach().clone() for p in twin.parameters()] for twin in twins]
    for step in range(2):
        labels = torch.randint(len(model.head.weight), (37,), generator=generator).to(device)
        given = (draw(features, dtype), model.head.weight, labels, model.logit_scale, 0.1)
        plain, fused = plain_head_loss(*given), head_loss(*given)
        results = [[f.d_features, f.d_weight.sum(0), f.losses.sum()] for f in (plain, fused)]
        for p, q in zip(*(twin.parameters() for twin in twins), strict=True):
            if p.requires_grad:
                seen = update.arena.seen(q)
                left_out = step == 1 and any(q is other for other in update.others[:1])
                seen.grad = None if left_out else draw(q, seen.dtype)
                p.grad = None if seen.grad is None else seen.grad.float()
        twins[0].head.weight.grad = plain.d_weight[0]
        set_row(optimizers[0], lr, momentum, cooled=0.7)
        for optimizer in optimizers[0]:
            optimizer.step()
        for group in update.groups[1:]:
            group.update(update.updates)
        update.finish(fused, loss_sum, counters)
        for found, twin, old, held in zip(results, twins, start, optimizers, strict=True):
            found += [p.detach() - q for p, q in zip(twin.parameters(), old, strict=True) if p.requires_grad]
            found += [o.state[p]["momentum_buffer"] for o in held for g in o.param_groups for p in g["params"]]
        largest = max(largest, farthest_in_norm(*results))
    rounded = torch.allclose(update.arena.low.float(), update.arena.weights, rtol=2.0**-7, atol=0.0)
    return largest if rounded and counters.tolist() == [2, 2] else float("inf")
