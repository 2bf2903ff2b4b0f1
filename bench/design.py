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
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bench import harness
from fastcifar.runs import intervals, record
from fastcifar.shapes import SHAPES, Shape, Stage

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


FACTORS = (
    Factor("last stage: first convolution 2x2", stage=2, change=(("kernel", 2),)),
    Factor("first stage: two 1x1 for the 3x3", stage=0, change=(("then", (1, 1)), ("residual", True))),
    Factor("second stage: 192 channels, 3x3 and 1x1", stage=1,
           change=(("then", (3, 1)), ("inner", 192), ("residual", True))),
    Factor("last stage: 384 channels", stage=2, change=(("width", 384),)),
    Factor("filters start as cosines", "start=random", "start=cosines"),
    Factor("rate of the biases 20", "bias_lr_scale=55", "bias_lr_scale=20"),
    Factor("ladder of sizes", "low_res_px=22 low_res_until=2", "low_res_px=22,28 low_res_until=1,3"),
    Factor("label smoothing 0.15", "label_smoothing=0.2", "label_smoothing=0.15"),
    Factor("tail from 0.85", "swa_start=0.8", "swa_start=0.85"),
)  # fmt: skip
"""What is screened; the stem's biases are trained at low resolution alone in all runs."""
CANDIDATES: dict[str, Shape] = {
    "N3": replace(SHAPES["full"], stages=(*SHAPES["full"].stages[:2],
                                          replace(SHAPES["full"].stages[2], kernel=2))),
}  # fmt: skip


def candidate(first: int, second: int, last: int, inner: int, through: int | None = None) -> Shape:
    """1x1 pairs in the first stage, a narrow pair in the second, a 2x2 convolution before the last pool."""
    return Shape(stem=24, stages=(
        Stage(width=first, then=(1, 1), residual=True),
        Stage(width=second, then=(3, 1), inner=inner, residual=True),
        Stage(width=last, kernel=2, then=(3, 3), inner=through, residual=True),
    ))  # fmt: skip


CANDIDATES |= {
    "N1": candidate(64, 256, 512, 192, 384), "N2": candidate(48, 192, 512, 144, 384),
    "N4": candidate(64, 256, 384, 192), "N5": candidate(56, 224, 448, 168, 384),
    "W1": candidate(96, 384, 768, 288, 512),
}  # fmt: skip
"""Networks of other proportions, by the name under which their runs are compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench: give `list` to write a design, or `rows` to read its runs."""

    list: Path | None = None
    """File to write: the design as a list for bench.sweep."""
    rows: Path | None = None
    """runs.jsonl of bench.sweep."""
    runs: int = 128
    """Runs of the design, a power of 2."""
    recipe: str = "speedrun94"
    """Recipe that the factors change."""
    set: str = "epochs=7 train_stem=low-res"
    """Settings of every run."""
    candidates: bool = False
    """Write runs of the whole networks in CANDIDATES and of the recipe's own instead, a seed at a time."""
    first_seed: int = 0
    """Seed of the first run."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.design")
    try:
        if options.list:
            jobs = candidate_jobs(options) if options.candidates else design_jobs(options)
            for high in (False, True):  # a run costs a tenth of a second to parse: both levels of every factor, at once
                harness.parse(options.recipe, f"{options.set} {settings_of([high] * len(FACTORS))}")
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


def design_jobs(options: Options) -> list[dict[str, Any]]:
    """The runs of a two-level design, each with its level of every factor. ValueError where the runs are too few."""
    table = levels(len(FACTORS), options.runs)
    jobs = []
    for seed, row in enumerate(table, options.first_seed):
        chosen = [bool(level > 0) for level in row]
        named = {factor.name: int(level) for factor, level in zip(FACTORS, row, strict=True)}
        jobs.append({"recipe": options.recipe, "settings": f"{options.set} {settings_of(chosen)}", "seed": seed,
                     "levels": named})  # fmt: skip
    return jobs


def settings_of(high: Sequence[bool]) -> str:
    """The settings of a run by the levels of FACTORS."""
    stages, parts = list(SHAPES["full"].stages), []
    for factor, is_high in zip(FACTORS, high, strict=True):
        if factor.stage is None:
            parts.append(factor.high if is_high else factor.low)
        elif is_high:
            stages[factor.stage] = replace(stages[factor.stage], **dict(factor.change))
    return " ".join([f"shape={replace(SHAPES['full'], stages=tuple(stages))}", *parts])


def candidate_jobs(options: Options) -> list[dict[str, Any]]:
    """Runs of whole networks: every network with a seed before the next seed."""
    shapes = {"full": SHAPES["full"], **CANDIDATES}
    seeds = range(options.first_seed, options.first_seed + max(1, options.runs // len(shapes)))
    return [{"recipe": options.recipe, "settings": f"{options.set} shape={shape}", "seed": seed, "network": name}
            for seed in seeds for name, shape in shapes.items()]  # fmt: skip


def levels(num_factors: int, runs: int) -> np.ndarray:
    """[runs, factors] of -1 and +1: a fractional factorial of resolution V or more, found by search.

    The first log2(runs) factors take all combinations; each further one is a product of some of them, such that no
    product of four or fewer columns is constant. ValueError when `runs` is no power of 2 or too small.
    """
    base = int(math.log2(runs)) if runs > 0 else 0
    if 2**base != runs:
        raise ValueError(f"runs is {runs}; give a power of 2")
    basic = [1 << i for i in range(min(base, num_factors))]  # bit i: the i-th basic factor is in the product
    words = _further_words(basic, num_factors - len(basic), range(1, runs))
    if words is None:
        raise ValueError(f"{runs} runs are too few for {num_factors} factors whose effects are told apart; double them")
    bits = (np.arange(runs)[:, None] >> np.arange(base)) & 1  # [runs, base]
    return np.stack([np.prod([2 * bits[:, i] - 1 for i in range(base) if word >> i & 1], axis=0) for word in words], 1)


def _further_words(words: list[int], count: int, candidates: Sequence[int]) -> list[int] | None:
    """The words and `count` of the candidates, all clear of each other; None where there are none."""
    if not count:
        return words
    clear = [word for word in candidates if _is_clear(words, word)]
    for n, word in enumerate(clear):
        if found := _further_words([*words, word], count - 1, clear[n + 1 :]):
            return found
    return None


def _is_clear(words: Sequence[int], word: int) -> bool:
    """Whether a product of `word` with three or fewer of the words is never constant."""
    products = {0}
    for count in (1, 2, 3):
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
    arithmetic_percent: float

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
    points = np.array([100 * row["accuracy"] for row in rows])
    work = np.log([row["train_pflop"] for row in rows])
    if np.linalg.matrix_rank(matrix) < matrix.shape[1]:
        raise ValueError(f"the {len(rows)} finished runs do not tell all factors apart; finish more")
    inverse = np.linalg.inv(matrix.T @ matrix)
    fitted, arithmetic = inverse @ matrix.T @ points, inverse @ matrix.T @ work
    variance = ((points - matrix @ fitted) ** 2).sum() / (len(rows) - matrix.shape[1])
    errors = 2 * np.sqrt(variance * np.diag(inverse))
    return [
        Effect(name, 2 * fitted[i], errors[i], 100 * math.expm1(2 * arithmetic[i])) for i, name in enumerate(names, 1)
    ]


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the effects, the best price first; for runs of whole networks, a table by network."""
    if any("network" in row for row in rows):
        return network_table([row for row in rows if "error" not in row])
    found = sorted(effects(rows), key=lambda effect: -effect.price)
    cells = [[e.name, f"{e.points:+.3f}", f"{e.standard_error:.3f}", f"{e.arithmetic_percent:+.1f}", f"{e.price:+.3f}"]
             for e in found]  # fmt: skip
    head = ("factor", "points", "standard error", "arithmetic %", "points less its price")
    return harness.markdown_table(head, cells)


def network_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy and arithmetic of each network."""
    cells = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        accuracies = harness.format_percent(intervals.interval([row["accuracy"] for row in mine]))
        cells.append([name, len(mine), f"{mine[0]['train_pflop']:.4f}", accuracies])
    return harness.markdown_table(("network", "n", "PFLOP", "accuracy % ± std [95%]"), cells)


if __name__ == "__main__":
    sys.exit(main())
