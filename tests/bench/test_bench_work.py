"""Arithmetic from the sizes of the maps is that of a watched forward pass; other programs by the same rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import design, harness, work
from fastcifar.config.config import Model
from fastcifar.config.shapes import SHAPES
from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model


@pytest.mark.parametrize("name", ["full", "small", "wide", "N1", "N4", "W1"])
@pytest.mark.parametrize("size", [32, 28, 24, 22, 17])
def test_sizes_and_a_watched_pass_give_one_count(name: str, size: int) -> None:
    shape = {**SHAPES, **design.NETWORKS}[name]
    model: Any = make_model(Model(scale="full", shape=shape), 10, seed=0)
    assert work.flop_per_image(shape, size, trains_stem=True) == train_flop(model, size)
    model.stem_fixed_from_px = 16
    assert work.flop_per_image(shape, size, trains_stem=False) == train_flop(model, size)
    model.first_stage_fixed = True
    assert work.flop_per_image(shape, size, False, trains_first_stage=False) == train_flop(model, size)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert work.main(["--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())}
    assert (rows["speedrun94"]["passes"], rows["speedrun94"]["train_pflop"]) == pytest.approx((8, 0.1996), abs=1e-4)
    before = rows["speedrun94 before 2026-11-29"]
    counts = before["passes"], before["naive_pflop"], before["train_pflop"]
    assert counts == pytest.approx((7.5, 0.2387, 0.2140), abs=1e-4)
    assert rows["speedrun94 in 8.5 epochs"]["train_pflop"] == pytest.approx(0.2150, abs=1e-4)
    assert rows["swa30, small network"]["train_pflop"] == pytest.approx(0.0522, abs=1e-4)
    stem_fixed = work.recipe_row("", harness.parse("speedrun94", work.SPEEDRUN94_BEFORE, "train_stem=low-res"))
    assert stem_fixed["train_pflop"] == pytest.approx(0.2072, abs=1e-4)
    assert rows["Fulcrum e1"]["train_pflop"] == pytest.approx(0.224, abs=1e-3)
    assert rows["hiverge"]["train_pflop"] == pytest.approx(0.254, abs=1e-3)
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
