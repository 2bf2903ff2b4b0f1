"""How much arithmetic does a training take, ours and other programs', counted by one rule?

    python -m bench.work

Forward, gradients of weights and of inputs; a multiply-add is 2 FLOP. What a program computes counts, whether it is
read or not: the others compute the last row and column of odd maps, which their pools drop. Nothing is trained: the
counts of other programs come from the constants of their scripts. Writes runs.jsonl and table.json.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
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
from fastcifar.optim.cooling import make_cooling
from fastcifar.runs import record
from fastcifar.training.fixed_parts import stem_fixed_from_px

IMAGES = 50_000
AIRBENCH = Shape(stem=24, stages=(Stage(width=64), Stage(width=256), Stage(width=256)))
"""The network of airbench94_muon, and of the programs that descend from it."""


@dataclass(frozen=True)
class Part:
    """Steps of a training in a row that cost the same."""

    size_px: int
    steps: int
    trains_stem: bool = False
    trains_first_stage: bool = True


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


SPEEDRUN94_BEFORE = (
    "epochs=7.5 start=random train_stem=always cool_first_stage= order=random low_res_px=22 low_res_until=0.3"
)
"""Settings of `speedrun94` until 2026-11-28, with which most of its runs in the records were made."""
VARIANTS = {
    "speedrun94 in 8.5 epochs": ("speedrun94", "epochs=8.5"),
    "speedrun94 before 2026-11-29": ("speedrun94", SPEEDRUN94_BEFORE),
    "swa30, small network": ("swa30", "scale=small"),
    "swa30, a fifth of it at low resolution": ("swa30", "low_res_until=0.2"),
}
"""Recipes with other settings that RECORDS.md has figures of."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipes: tuple[str, ...] = ("speedrun94", "fewest94", "swa30", "accurate96")
    """Recipes with resnet9 that are counted, those without a size of their own at full size."""
    out: Path = Path("bench-results/work")
    """Folder of the results."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.work")
    rows = [recipe_row(name, RECIPES[name]) for name in options.recipes]
    rows += [recipe_row(name, harness.parse(recipe, settings)) for name, (recipe, settings) in VARIANTS.items()]
    rows += [peer_row(peer) for peer in PEERS]
    record.write_lines(options.out / "runs.jsonl", rows)
    cells = [[row["name"], f"{row['passes']:.2f}", f"{row['naive_pflop']:.4f}", f"{row['train_pflop']:.4f}"]
             for row in rows]  # fmt: skip
    print(harness.markdown_table(("training", "passes", "PFLOP with what no pool reads", "PFLOP as computed"), cells))
    return 0


def recipe_row(name: str, config: Config) -> dict[str, Any]:
    """Counts of a training of resnet9 by a recipe of ours."""
    steps_per_epoch = IMAGES // config.optimizer.batch_size
    num_steps = round(config.epochs * steps_per_epoch)
    fixed_from, cooled_at = stem_fixed_from_px(config) or math.inf, make_cooling(config, steps_per_epoch).end
    forms = Counter[tuple[int, bool, bool]]()
    for step in range(num_steps):
        size = image_size(config, step // steps_per_epoch)
        forms[size, size < fixed_from and step < cooled_at, step < cooled_at] += 1
    parts = [Part(size, steps, *trained) for (size, *trained), steps in forms.items()]
    shape = SHAPES["full" if config.model.scale == "auto" else config.model.scale]
    return _row(name, shape, config.optimizer.batch_size, parts, lean=True)


def peer_row(peer: Peer) -> dict[str, Any]:
    """Counts of another program."""
    row = _row(peer.name, AIRBENCH, peer.batch, peer.parts, lean=False)
    return {**row, "source": peer.source, "accuracy": peer.accuracy, "n": peer.n}


def _row(name: str, shape: Shape, batch: int, parts: Sequence[Part], lean: bool) -> dict[str, Any]:
    naive, ours = (
        sum(
            p.steps * batch * flop_per_image(shape, p.size_px, p.trains_stem, leave_out, p.trains_first_stage)
            for p in parts
        )
        / 1e15
        for leave_out in (False, True)
    )
    passes = sum(part.steps for part in parts) * batch / IMAGES
    return {"name": name, "shape": asdict(shape), "batch": batch, "parts": [asdict(part) for part in parts],
            "passes": passes, "naive_pflop": naive, "train_pflop": ours if lean else naive}  # fmt: skip


def flop_per_image(
    shape: Shape, size_px: int, trains_stem: bool, leave_out: bool = True, trains_first_stage: bool = True
) -> float:
    """FLOP of forward and backward per image, from the sizes of the maps alone.

    leave_out: without the outputs that no pool reads, as fastcifar computes; else with them.
    """
    size, c_in = size_px - 1, shape.stem
    total = 3 * 4 * shape.stem * size**2  # multiply-adds; the stem's filters are fixed
    input_is_trained = trains_stem  # else a convolution has no gradient of its input
    for n, stage in enumerate(shape.stages):
        computed, pooled = (size // 2 * 2 if leave_out else size), size // 2
        trained = n > 0 or trains_first_stage
        total += (1 + trained + (trained and input_is_trained)) * stage.kernel**2 * c_in * stage.width * computed**2
        widths = [stage.width, *[stage.inner or stage.width] * (len(stage.then) - 1), stage.width]
        for kernel, (a, b) in zip(stage.then, pairwise(widths), strict=True):
            total += (3 if trained else 1) * kernel**2 * a * b * pooled**2
        size, c_in, input_is_trained = pooled, stage.width, trained
    return 2.0 * (total + 3 * 10 * c_in)


if __name__ == "__main__":
    sys.exit(main())
