"""How much arithmetic does a training take, ours and other programs', counted by one rule?

    python -m bench.work

Forward, gradients of weights and of inputs; a multiply-add is 2 FLOP. What a program computes counts, whether it is
read or not: the others compute the last row and column of odd maps, which their pools drop. Nothing is trained: the
counts of other programs come from the constants of their scripts. Writes runs.jsonl and table.json.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from bench import harness
from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.config.recipes import RECIPES
from fastcifar.config.shapes import SHAPES, Shape, Stage
from fastcifar.runs import record

IMAGES = 50_000
AIRBENCH = Shape(stem=24, stages=(Stage(width=64), Stage(width=256), Stage(width=256)))
"""The network of airbench94_muon, and of the programs that descend from it."""


@dataclass(frozen=True)
class Part:
    """Steps of a training in a row that cost the same."""

    size_px: int
    steps: int
    trains_stem: bool = False


@dataclass(frozen=True)
class Peer:
    """Schedule of another program, as its script has it, and the accuracy that it reports."""

    name: str
    source: str
    batch: int
    parts: tuple[Part, ...]
    accuracy: float
    n: int


PEERS = (
    Peer("airbench94_muon", "KellerJordan/cifar10-airbench at f1c599c: 8 epochs of 25 steps, biases for 3 epochs", 2000,
         (Part(32, 75, True), Part(32, 125)), 0.9401, 200),
    Peer("hiverge", "hiverge/cifar10-speedrun at 5cd49b1: 243 steps, biases for 0.19 epochs", 1536,
         (Part(32, 7, True), Part(32, 236)), 0.9401, 200),
    Peer("Fulcrum e1", "fulcrumresearch/cifar-10-speedrun at ddec65f, runners/recipes/e1.py: 284 steps, 32 an epoch",
         1536, (Part(24, 7, True), Part(24, 89), Part(28, 96), Part(32, 92)), 0.94046, 200),
    Peer("Fulcrum e5", "the same, runners/recipes/e5.py at 8.25 epochs", 1536,
         (Part(28, 7, True), Part(28, 153), Part(32, 104)), 0.9402, 200),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipes: tuple[str, ...] = ("speedrun94", "fewest94", "swa30", "accurate96")
    """Recipes with resnet9 that are counted, those without a size of their own at full size."""
    out: Path = Path("bench-results/work")
    """Folder of the results."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.work")
    rows = [row for name in options.recipes for row in recipe_rows(name)] + [peer_row(peer) for peer in PEERS]
    record.write_lines(options.out / "runs.jsonl", rows)
    cells = [[row["name"], f"{row['passes']:.2f}", f"{row['naive_pflop']:.4f}", f"{row['train_pflop']:.4f}"]
             for row in rows]  # fmt: skip
    print(harness.markdown_table(("training", "passes", "PFLOP with what no pool reads", "PFLOP as computed"), cells))
    return 0


def recipe_rows(name: str) -> list[dict[str, Any]]:
    """Counts of a recipe as it is, and with the stem's biases trained at low resolution alone, where it has one."""
    config = RECIPES[name]
    scale = "full" if config.model.scale == "auto" else config.model.scale
    kinds = ["always", "low-res"] if config.augment.low_res_px else ["always"]
    return [_recipe_row(f"{name}, stem {kind}" if kind == "low-res" else name, config, SHAPES[scale], kind)
            for kind in kinds]  # fmt: skip


def _recipe_row(name: str, config: Config, shape: Shape, train_stem: str) -> dict[str, Any]:
    steps_per_epoch = IMAGES // config.optimizer.batch_size
    num_steps = round(config.epochs * steps_per_epoch)
    parts = []
    for epoch in range(math.ceil(config.epochs)):
        size = image_size(config, epoch)
        steps = min(steps_per_epoch, num_steps - epoch * steps_per_epoch)
        parts.append(Part(size, steps, train_stem == "always" or size < 32))
    return _row(name, shape, config.optimizer.batch_size, parts, lean=True)


def peer_row(peer: Peer) -> dict[str, Any]:
    """Counts of another program."""
    row = _row(peer.name, AIRBENCH, peer.batch, peer.parts, lean=False)
    return {**row, "source": peer.source, "accuracy": peer.accuracy, "n": peer.n}


def _row(name: str, shape: Shape, batch: int, parts: Sequence[Part], lean: bool) -> dict[str, Any]:
    naive, ours = (
        sum(part.steps * batch * flop_per_image(shape, part.size_px, part.trains_stem, leave_out) for part in parts)
        / 1e15
        for leave_out in (False, True)
    )
    passes = sum(part.steps for part in parts) * batch / IMAGES
    return {"name": name, "shape": asdict(shape), "batch": batch, "parts": [asdict(part) for part in parts],
            "passes": passes, "naive_pflop": naive, "train_pflop": ours if lean else naive}  # fmt: skip


def flop_per_image(shape: Shape, size_px: int, trains_stem: bool, leave_out: bool = True) -> float:
    """FLOP of forward and backward per image, from the sizes of the maps alone.

    leave_out: without the outputs that no pool reads, as fastcifar computes; else with them.
    """
    size, c_in = size_px - 1, shape.stem
    total = 3 * 4 * shape.stem * size**2  # multiply-adds; the stem's filters are fixed
    for n, stage in enumerate(shape.stages):
        computed, pooled = (size // 2 * 2 if leave_out else size), size // 2
        passes = 3 if n or trains_stem else 2  # no gradient of the input where nothing before it is trained
        total += passes * stage.kernel**2 * c_in * stage.width * computed**2
        widths = [stage.width, *[stage.inner or stage.width] * (len(stage.then) - 1), stage.width]
        for kernel, (a, b) in zip(stage.then, pairwise(widths), strict=True):
            total += 3 * kernel**2 * a * b * pooled**2
        size, c_in = pooled, stage.width
    return 2.0 * (total + 3 * 10 * c_in)


if __name__ == "__main__":
    sys.exit(main())
