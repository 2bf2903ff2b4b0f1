"""Writes list.jsonl: a design of resolution IV, eight factors in 16 runs, whose order is drawn at random."""

import itertools
import json
from pathlib import Path

import numpy as np

from bench import harness

CUT_PAIR = {"width": 128, "then": [3, 1], "residual": True}
FACTORS = (
    "last stage: pair 3x3, 1x1", "second stage: 3x3 to 96 channels, 1x1, residual", "cosines", "balanced order",
    "Lookahead for the tail", "8 passes, three at 24 px (7.5, two)",
    "first stage cools from 0.45 to 0.65 (0.6 to 0.8)", "rate of the biases 20 (55)",
)  # fmt: skip


def settings_of(last: bool, second: bool, cosines: bool, balanced: bool, lookahead: bool, longer: bool, early: bool,
                biases: bool) -> str:  # fmt: skip
    stages = [{"width": 32}, {"width": 128}, {**CUT_PAIR, "then": [3, 1] if last else [3, 3]}]
    if second:
        stages[1] = {"width": 128, "then": [3, 1], "inner": 96, "residual": True}
    return (
        "lr_peak=0.14 train_stem=low-res low_res_px=24"
        + " start=cosines" * cosines
        + " order=balanced" * balanced
        + (" swa_start=None lookahead=True final_div_factor=1.4286" if lookahead else " swa_lr=0.014")
        + (" epochs=8 low_res_until=3" if longer else " epochs=7.5 low_res_until=2")
        + (" cool_first_stage=0.45,0.65" if early else " cool_first_stage=0.6,0.8")
        + " bias_lr_scale=20" * biases
        + " shape="
        + json.dumps({"stem": 24, "stages": stages}, separators=(",", ":"))
    )


a, b, c, d = (np.array(levels) for levels in zip(*itertools.product([-1, 1], repeat=4), strict=True))
design = np.stack([a, b, c, d, b * c * d, a * c * d, a * b * c, a * b * d], 1)
rows = []
for seed, n in enumerate(np.random.default_rng(3).permutation(16), 200):
    settings = settings_of(*(bool(level > 0) for level in design[n]))
    harness.parse("speedrun94", settings)
    levels = {name: int(level) for name, level in zip(FACTORS, design[n], strict=True)}
    rows.append({"recipe": "speedrun94", "settings": settings, "seed": seed, "levels": levels})
Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
