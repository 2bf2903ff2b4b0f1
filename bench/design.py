"""Which changes of a recipe pay? A two-level design of runs for `bench.sweep`, and each change's effect and price.

    python -m bench.design --list screening.jsonl --runs 128              # writes the list
    python -m bench.sweep --list screening.jsonl --data PATH --hold-out 5000 --processes 6
    python -m bench.design --rows bench-results/sweep/runs.jsonl          # prints the effects

Every run sets each factor low or high, such that all effects of single factors are estimated from all runs at once, and
from resolution V on none is mixed up with another one or with a pair of two others (Box, Hunter and Hunter, "Statistics
for Experimenters"). A seed is used once. A factor that adds arithmetic must pay for it: its price is its effect less
0.019 points for each percent of arithmetic that it adds, the exchange rate of the lengths of the recipe (RECORDS.md).
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from bench import harness
from fastcifar.config.shapes import SHAPES, Shape, Stage
from fastcifar.runs import intervals, record

POINTS_PER_PERCENT = 0.019
"""Accuracy in points that one percent more arithmetic gives by more epochs: the fit of 4 to 10 passes in RECORDS.md."""


@dataclass(frozen=True)
class Factor:
    """A change: settings of both levels, or what it does to the stages of the network."""

    name: str
    low: str = ""
    high: str = ""
    stage: int | None = None
    """Stage that the high level changes."""
    change: tuple[tuple[str, Any], ...] = ()
    """Fields of the stage at the high level."""


def candidate(first: int, second: int, last: int, inner: int, through: int | None = None) -> Shape:
    """1x1 pairs in the first stage, a narrow pair in the second, a 2x2 convolution before the last pool."""
    return Shape(stem=24, stages=(
        Stage(width=first, then=(1, 1), residual=True),
        Stage(width=second, then=(3, 1), inner=inner, residual=True),
        Stage(width=last, kernel=2, then=(3, 3), inner=through, residual=True),
    ))  # fmt: skip


FULL = SHAPES["full"]
NETWORKS = {
    "full": FULL,
    "N1": candidate(64, 256, 512, 192, 384), "N2": candidate(48, 192, 512, 144, 384),
    "N4": candidate(64, 256, 384, 192), "N5": candidate(56, 224, 448, 168, 384),
    "W1": candidate(96, 384, 768, 288, 512),
}  # fmt: skip
"""Networks of other proportions, by the name under which their runs are compared."""


@dataclass(frozen=True)
class Design:
    """What is screened: a recipe, settings of every run, and the factors."""

    recipe: str
    settings: str
    factors: tuple[Factor, ...]


DESIGNS = {
    "94": Design("speedrun94", "epochs=7 train_stem=low-res", (
        Factor("low resolution of 24 pixels for 22", "low_res_px=22", "low_res_px=24"),
        Factor("first stage: two 1x1 for the 3x3", stage=0, change=(("then", (1, 1)), ("residual", True))),
        Factor("second stage: 192 channels, 3x3 and 1x1", stage=1,
               change=(("then", (3, 1)), ("inner", 192), ("residual", True))),
        Factor("last stage: 384 channels", stage=2, change=(("width", 384),)),
        Factor("filters start as cosines", "start=random", "start=cosines"),
        Factor("rate of the biases 20", "bias_lr_scale=55", "bias_lr_scale=20"),
        Factor("low resolution for three epochs, not two", "low_res_until=2", "low_res_until=3"),
        Factor("first stage cools, then fixed", "cool_first_stage=", "cool_first_stage=0.6,0.8"),
        Factor("peak held until 0.4 of the cycle", high="pct_hold=0.3"),
        Factor("balanced order", "order=random", "order=balanced"),
    )),
    "95": Design("fewest94", "low_res_px=22 low_res_until=2 train_stem=low-res", (
        Factor("9.5 epochs for 8", "epochs=8", "epochs=9.5"),
        Factor("W1 for wide", f"shape={SHAPES['wide']}", f"shape={NETWORKS['W1']}"),
        Factor("cutout of 8 pixels", "cutout_px=0", "cutout_px=8"),
        Factor("crops of 3 pixels for 2", "crop_pad_px=2", "crop_pad_px=3"),
        Factor("label smoothing 0.25 for 0.15", "label_smoothing=0.15", "label_smoothing=0.25"),
        Factor("tail from 0.85 for 0.8", "swa_start=0.8", "swa_start=0.85"),
    )),
}  # fmt: skip
"""Two-level designs by the accuracy that they are for."""
_BATCH_1000 = (
    "batch_size=1000 lr_peak=0.14 bias_lr_scale=100 head_lr_scale=320 swa_every=2 swa_lr=0.014 swa_momentum=0.8 "
    "swa_start=0.84 label_smoothing=0.15 cool_first_stage=0.6,0.84"
)
COMPARISONS = {
    "networks": Design("speedrun94", "epochs=7 train_stem=low-res",
                       tuple(Factor(name, high=f"shape={shape}") for name, shape in NETWORKS.items())),
    "batches": Design("speedrun94", "epochs=8 train_stem=low-res",
                      (Factor("batch 500"), Factor("batch 1,000", high=_BATCH_1000))),
    "recipe": Design("speedrun94", "", (Factor("speedrun94"),)),
}  # fmt: skip
"""Whole variants, each with the same seeds; the recipe alone, for many seeds on the test images."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench: give `list` to write a design, or `rows` to read its runs."""

    list: Path | None = None
    """File to write: the design as a list for bench.sweep."""
    rows: Path | None = None
    """runs.jsonl of bench.sweep."""
    design: Literal["94", "95", "networks", "batches", "recipe"] = "94"
    """What is screened: a two-level design, or whole variants beside each other."""
    runs: int = 128
    """Runs of the list; of a two-level design a power of 2."""
    resolution: Literal[4, 5] = 5
    """Of a two-level design: at 5 no effect of a factor or a pair is mixed up with another of them, at 4 pairs may be
    mixed up with pairs, in fewer runs."""
    first_seed: int = 0
    """Seed of the first run."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.design")
    try:
        if options.list:
            jobs = list_of(options)
            for job in (jobs[0], jobs[-1]):  # a run takes a tenth of a second to parse
                harness.parse(job["recipe"], job["settings"])
            record.write_lines(options.list, jobs)
            print(f"{len(jobs)} runs in {options.list}")
            return 0
        if options.rows is None:
            raise ValueError("give --list FILE to write a design, or --rows FILE to read its runs")
        print(report(harness.read_rows(options.rows)))
    except (OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def list_of(options: Options) -> list[dict[str, Any]]:
    """The runs of a design. ValueError where they are too few for its factors."""
    if options.design in COMPARISONS:
        return compared_jobs(COMPARISONS[options.design], options)
    design = DESIGNS[options.design]
    jobs = []
    rows = list(levels(len(design.factors), options.runs, options.resolution))
    random.Random(0).shuffle(rows)  # else the first half of a list that is cut has some factors at one level
    for seed, row in enumerate(rows, options.first_seed):
        named = {factor.name: int(level) for factor, level in zip(design.factors, row, strict=True)}
        jobs.append({"recipe": design.recipe, "settings": settings_of(design, row > 0), "seed": seed, "levels": named})
    return jobs


def settings_of(design: Design, high: Iterable[bool]) -> str:
    """The settings of a run by the levels of the factors."""
    stages, parts = list(FULL.stages), [design.settings]
    for factor, is_high in zip(design.factors, high, strict=True):
        if factor.stage is None:
            parts.append(factor.high if is_high else factor.low)
        elif is_high:
            stages[factor.stage] = replace(stages[factor.stage], **dict(factor.change))
    shape = replace(FULL, stages=tuple(stages))
    return " ".join(filter(None, [*parts, f"shape={shape}" if shape != FULL else ""]))


def compared_jobs(design: Design, options: Options) -> list[dict[str, Any]]:
    """Runs of whole variants: every variant with a seed before the next seed."""
    seeds = range(options.first_seed, options.first_seed + max(1, options.runs // len(design.factors)))
    return [{"recipe": design.recipe, "settings": f"{design.settings} {factor.high}".strip(), "seed": seed,
             "compared": factor.name} for seed in seeds for factor in design.factors]  # fmt: skip


def levels(num_factors: int, runs: int, resolution: int = 5) -> np.ndarray:
    """[runs, factors] of -1 and +1: a fractional factorial of this resolution or more, found by search.

    The first log2(runs) factors take all combinations; each further one is a product of some of them, such that no
    product of fewer columns than `resolution` is constant. ValueError when `runs` is no power of 2 or too small.
    """
    base = int(math.log2(runs)) if runs > 0 else 0
    if 2**base != runs:
        raise ValueError(f"runs is {runs}; give a power of 2")
    basic = [1 << i for i in range(min(base, num_factors))]  # bit i: the i-th basic factor is in the product
    words = _further_words(basic, num_factors - len(basic), range(1, runs), resolution)
    if words is None:
        raise ValueError(f"{runs} runs are too few for {num_factors} factors whose effects are told apart; double them")
    bits = (np.arange(runs)[:, None] >> np.arange(base)) & 1  # [runs, base]
    return np.stack([np.prod([2 * bits[:, i] - 1 for i in range(base) if word >> i & 1], axis=0) for word in words], 1)


def _further_words(words: list[int], count: int, candidates: Sequence[int], resolution: int) -> list[int] | None:
    """The words and `count` of the candidates, all clear of each other; None where there are none."""
    if not count:
        return words
    clear = [word for word in candidates if _is_clear(words, word, resolution)]
    for n, word in enumerate(clear):
        if found := _further_words([*words, word], count - 1, clear[n + 1 :], resolution):
            return found
    return None


def _is_clear(words: Sequence[int], word: int, resolution: int) -> bool:
    """Whether a product of `word` with `resolution` - 2 or fewer of the words is never constant."""
    products = {0}
    for count in range(1, resolution - 1):
        for chosen in itertools.combinations(words, count):
            product = 0
            for one in chosen:
                product ^= one
            products.add(product)
    return word not in products


@dataclass(frozen=True)
class Effect:
    """High minus low of a factor."""

    name: str
    points: float
    standard_error: float
    """Of `points`."""
    arithmetic_percent: float
    loss: float
    """In thousandths; nan where a run has no `loss_mirrored`."""
    loss_error: float

    @property
    def price(self) -> float:
        """Points after the arithmetic is paid for."""
        return self.points - POINTS_PER_PERCENT * self.arithmetic_percent


def effects(rows: Sequence[dict[str, Any]]) -> list[Effect]:
    """Effect of each factor by least squares over single factors; runs may be missing. ValueError for too few.

    The standard error comes from the residuals, which hold the scatter of the seeds and the interactions.
    """
    rows = [row for row in rows if "error" not in row and "levels" in row]
    names = list(rows[0]["levels"]) if rows else []
    if len(rows) < len(names) + 2:
        raise ValueError(f"{len(rows)} finished runs are too few for {len(names)} factors")
    matrix = np.array([[1.0, *(row["levels"][name] for name in names)] for row in rows])
    measured = np.array([  # [runs, 3]
        [100 * row["accuracy"], 1000 * row.get("loss_mirrored", math.nan), math.log(row["train_pflop"])] for row in rows
    ])  # fmt: skip
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise ValueError(f"the {len(rows)} finished runs do not tell all factors apart; finish more")
    inverse = np.linalg.inv(matrix.T @ matrix)
    fitted = inverse @ matrix.T @ measured
    variances = ((measured - matrix @ fitted) ** 2).sum(0) / (len(rows) - matrix.shape[1])
    errors = 2 * np.sqrt(np.outer(np.diag(inverse), variances))
    return [
        Effect(name, 2 * points, error, 100 * math.expm1(2 * work), 2 * loss, loss_error)
        for name, (points, loss, work), (error, loss_error, _) in zip(names, fitted[1:], errors[1:], strict=True)
    ]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the effects, the best price first; for runs of whole variants, a table of them.

    Of a run that was made again, at another commit or on another device, the newest row counts.
    """
    newest = {(row.get("recipe"), row.get("settings"), row.get("seed")): row for row in rows if "error" not in row}
    rows = list(newest.values())
    if any("compared" in row for row in rows):
        return variant_table(rows)
    found = sorted(effects(rows), key=lambda effect: -effect.price)
    cells = [[e.name, f"{e.points:+.3f}", f"{e.standard_error:.3f}", f"{e.arithmetic_percent:+.1f}", f"{e.price:+.3f}",
              f"{e.loss:+.2f}", f"{e.loss_error:.2f}"] for e in found]  # fmt: skip
    head = ("factor", "points", "standard error", "arithmetic %", "points less its price",
            "loss, thousandths", "standard error")  # fmt: skip
    return harness.markdown_table(head, cells)


def variant_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and arithmetic of each variant."""
    cells = []
    for name in dict.fromkeys(row["compared"] for row in rows):
        mine = [row for row in rows if row["compared"] == name]
        accuracies = harness.format_percent(intervals.interval([row["accuracy"] for row in mine]))
        cells.append([name, len(mine), f"{mine[0]['train_pflop']:.4f}", accuracies])
    return harness.markdown_table(("variant", "n", "PFLOP", "accuracy % ± std [95%]"), cells)


if __name__ == "__main__":
    sys.exit(main())
