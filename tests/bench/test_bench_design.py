"""The designs of a screening tell their factors apart, and effects that were put in come out."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bench import design, harness
from fastcifar.config.shapes import SHAPES
from fastcifar.optim.schedule_table import make_schedule_table

FACTORS = design.DESIGNS["94"].factors


@pytest.mark.parametrize(("num_factors", "runs"), [(3, 8), (5, 16), (6, 32), (8, 64), (11, 128)])
def test_no_effect_is_mixed_up_with_a_pair_of_others(num_factors: int, runs: int) -> None:
    table = design.levels(num_factors, runs)
    assert table.shape == (runs, num_factors) and set(table.flat) == {-1, 1}
    for count in range(1, 5):
        for columns in itertools.combinations(range(num_factors), count):
            assert abs(table[:, columns].prod(1).sum()) < runs or count == 0


@pytest.mark.parametrize(("num_factors", "runs"), [(4, 8), (8, 16), (16, 32)])
def test_at_resolution_4_fewer_runs_tell_factors_from_pairs(num_factors: int, runs: int) -> None:
    table = design.levels(num_factors, runs, resolution=4)
    assert table.shape == (runs, num_factors)
    for count in range(1, 4):
        for columns in itertools.combinations(range(num_factors), count):
            assert abs(table[:, columns].prod(1).sum()) < runs
    with pytest.raises(ValueError, match="too few"):
        design.levels(num_factors, runs)


@pytest.mark.parametrize(("num_factors", "runs", "told"), [(9, 16, "too few"), (3, 12, "power of 2"), (3, 0, "power")])
def test_too_few_runs_are_refused(num_factors: int, runs: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        design.levels(num_factors, runs)


@pytest.mark.parametrize(("name", "runs"), [("94", 128), ("95", 32)])
def test_the_list_holds_each_factor_at_both_levels(name: str, runs: int, tmp_path: Path) -> None:
    words = ["--list", str(tmp_path / "list.jsonl"), "--design", name, "--runs", str(runs), "--first-seed", "500"]
    assert design.main(words) == 0
    jobs = harness.read_rows(tmp_path / "list.jsonl")
    assert [job["seed"] for job in jobs] == list(range(500, 500 + runs))
    for factor in design.DESIGNS[name].factors:
        assert sum(job["levels"][factor.name] for job in jobs) == 0
    assert len({job["settings"] for job in jobs}) == runs


@pytest.mark.parametrize("name", design.DESIGNS)
def test_levels_are_the_settings_that_they_name(name: str) -> None:
    screened = design.DESIGNS[name]
    low, high = (
        harness.parse(screened.recipe, design.settings_of(screened, [level] * len(screened.factors)))
        for level in (False, True)
    )
    if name == "94":
        assert low.model.layers == SHAPES["full"] and (low.augment.low_res_px, low.augment.low_res_until) == (
            (22,),
            (2.0,),
        )
        first, second, last = high.model.layers.stages
        assert first.then == (1, 1) and second.inner == 192 and last.width == 384
        assert high.model.start == "cosines" and (high.augment.low_res_px, high.augment.low_res_until) == (
            (24,),
            (3.0,),
        )
        assert high.model.cool_first_stage == (0.6, 0.8) and low.model.cool_first_stage == ()
        assert [c.augment.order for c in (low, high)] == ["random", "balanced"]
        assert low.tail is not None and len(FACTORS) == 10
        at_peak = (make_schedule_table(high, 90).table[:, 0] > 0.12 - 1e-9).nonzero().flatten()
        assert (at_peak[0].item(), at_peak[-1].item()) == (49, 200)  # of 504 steps of the cycle
    else:
        assert low.model.layers == SHAPES["wide"] and high.model.layers == design.NETWORKS["W1"]
        assert (low.epochs, high.epochs, high.augment.cutout_px) == (8, 9.5, 8)


def made_rows(scatter: float, known: dict[str, float], work: dict[str, float]) -> list[dict[str, object]]:
    generator, rows = np.random.default_rng(1), []
    names = [factor.name for factor in FACTORS]
    for job in design.list_of(design.Options()):
        high = [name for name in names if job["levels"][name] > 0]
        points = 93 + sum(known.get(name, 0) for name in high) + scatter * generator.standard_normal()
        pflop = 0.2 * np.prod([1 + work.get(name, 0) for name in high])
        loss = 0.2 - 0.002 * (names[3] in high) + scatter / 100 * generator.standard_normal()
        rows.append({**job, "accuracy": points / 100, "train_pflop": float(pflop), "loss_mirrored": loss})
    return rows


def test_effects_that_were_put_in_come_out() -> None:
    names = [factor.name for factor in FACTORS]
    rows = made_rows(0.2, {names[0]: -0.1, names[3]: 0.2}, {names[0]: -0.1, names[3]: 0.2})
    rows = [*rows[:-5], {**rows[-1], "error": "out of memory"}]  # some are missing
    found = {effect.name: effect for effect in design.effects(rows)}
    for name in names:
        expected = {names[0]: -0.1, names[3]: 0.2}.get(name, 0.0)
        assert abs(found[name].points - expected) < 3 * found[name].standard_error
        assert found[name].standard_error == pytest.approx(2 * 0.2 / 123**0.5, rel=0.3)
        loss = -2 if name == names[3] else 0
        assert abs(found[name].loss - loss) < 3 * found[name].loss_error
        assert found[name].loss_error == pytest.approx(2 * 2 / 123**0.5, rel=0.3)
    assert [found[names[n]].arithmetic_percent for n in (0, 3)] == pytest.approx([-10, 20])
    assert found[names[3]].price == pytest.approx(found[names[3]].points - 0.019 * 20)
    without = design.effects([{**row, "loss_mirrored": float("nan")} for row in rows])
    assert [effect.points for effect in without] == [found[name].points for name in names]
    lines = design.report(rows).splitlines()
    assert len(lines) == 2 + len(names) and names[3] in lines[-1]  # 0.2 points cost 0.38


def test_whole_variants_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--list", str(tmp_path / "list.jsonl"), "--design", "networks", "--runs", "12"]
    assert design.main(words) == 0
    jobs = harness.read_rows(tmp_path / "list.jsonl")
    assert len(jobs) == 12 and {job["compared"] for job in jobs} == {*design.NETWORKS}
    rows = [{**job, "accuracy": 0.93 + job["seed"] / 1000, "train_pflop": 0.2} for job in jobs]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    capsys.readouterr()
    assert design.main(["--rows", str(tmp_path / "rows.jsonl")]) == 0
    assert capsys.readouterr().out.count("93.05 ± 0.07") == 6
    again = [{**row, "accuracy": row["accuracy"] + 0.001, "state": "newer"} for row in rows]
    report = design.report([*rows, *again])  # the newest row of each run counts
    assert report.count("93.15 ± 0.07") == 6 and report == design.report(again)
    batches = design.list_of(design.Options(design="batches", runs=20))
    assert [harness.parse(job["recipe"], job["settings"]).optimizer.batch_size for job in batches[:2]] == [500, 1000]


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    for words in ([], ["--list", str(tmp_path / "list"), "--runs", "100"], ["--rows", str(tmp_path / "rows.jsonl")]):
        assert design.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
