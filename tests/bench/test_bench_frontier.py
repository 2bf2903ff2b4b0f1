"""The pictures of the README show the runs that records/frontier.json names, and no others."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest

from bench import frontier
from fastcifar.config.recipes import RECIPES
from fastcifar.optim.schedule_table import make_schedule_table

SCHEDULE = make_schedule_table(RECIPES["swa30"], 10)
RUN = {"dataset": "cifar10", "recipe": "swa30", "variant": "as it is", "epochs": 30.0, "accuracy": 0.9,
       "train_pflop": 0.7, "num_steps": 300, "seed": 0, "scale": "full"}  # fmt: skip
HISTORY = [{"epoch": 1, "step": 10, "phase": "cycle", "lr": SCHEDULE[9][0], "momentum": SCHEDULE[9][1],
            "loss_train": 2.0, "accuracy_test": 0.5, "time_s": 1.0}]  # fmt: skip
SERIES = {"name": "the default", "rows": {"a/*.jsonl": "as it is", "a/s0/*.json": None}, "naive": True}


@pytest.fixture
def records(tmp_path):
    """Three runs of a series at two lengths, a variant that is not in it, and a run with curves."""
    rows = [RUN, {**RUN, "accuracy": 0.92}, {**RUN, "variant": "lr_peak=0.2"}, {**RUN, "epochs": 5.0}]
    (tmp_path / "a" / "s0").mkdir(parents=True)
    (tmp_path / "a" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a" / "s0" / "summary.json").write_text(json.dumps({**RUN, "epochs": 5}))
    (tmp_path / "a" / "curves.json").write_text(json.dumps({**RUN, "history": HISTORY}))
    peer = {"name": "other", "epochs": 8, "train_pflop": 0.3, "accuracy": 0.94}
    (tmp_path / "published.json").write_text(json.dumps([peer]))
    (tmp_path / "frontier.json").write_text(json.dumps([SERIES]))
    return tmp_path


def test_a_series_has_the_runs_of_its_files_and_variants(records):
    series = frontier.Series.read(records, SERIES)
    assert {epochs: len(runs) for epochs, runs in series.by_length.items()} == {5.0: 2, 30.0: 2}
    assert series.count == "2"
    (records / "a" / "more.jsonl").write_text(json.dumps({**RUN, "dataset": "cifar10-jpeg"}))
    with pytest.raises(ValueError, match="not on the lossless CIFAR-10"):
        frontier.Series.read(records, SERIES)


def test_pictures(records, capsys):
    assert frontier.main(["--records", str(records), "--out", str(records / "out")]) == 0
    assert {p.name for p in (records / "out").iterdir()} == {"frontier.png", "curves.png"}
    (records / "empty").mkdir()
    assert frontier.main(["--records", str(records / "empty")]) == 2
    assert "give the folder of the records" in capsys.readouterr().err


def test_a_tenth_is_left_out():
    assert frontier.lean_share() == pytest.approx(0.896, abs=5e-4)


def test_curves_are_those_of_the_recipe_step_by_step(monkeypatch):
    drawn = []
    monkeypatch.setattr(frontier.plots, "draw_curves", lambda *args: drawn.append(args))
    frontier.draw_run(Path("curves.png"), {**RUN, "history": HISTORY})
    ((_, _, schedule, _, config),) = drawn
    assert schedule.table.equal(SCHEDULE.table) and config.epochs == 30
    with pytest.raises(ValueError, match="another learning rate"):
        frontier.draw_run(Path("curves.png"), {**RUN, "history": [{**HISTORY[0], "lr": 0.5}]})


def test_the_frontier_of_the_repository_has_names_and_no_marker_covers_another(monkeypatch):
    root, figures = Path(frontier.ROOT) / "records", []
    series = [frontier.Series.read(root, one) for one in frontier.read_json(root / "frontier.json")]
    assert series[0].name == "speedrun94"
    assert series[1].name == "speedrun94 until 2026-11-28" and series[1].count == "13"
    monkeypatch.setattr(frontier.plots, "save_figure", lambda figure, path: figures.append(figure))
    frontier.draw_frontier(Path("frontier.png"), series, frontier.read_json(root / "published.json"))
    (figure,) = figures
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(names)) == len(names) == 7 and "Fulcrum e1, published" in names and "fewest94, n = 6" in names
    assert not any("settings" in name or "=" in name.replace("n = ", "") for name in names)
    figure.canvas.draw()
    for axis in figure.axes:
        lines = [line for line in axis.lines if line.get_marker() in "o*P^" and line.get_label() != "94%"]
        points = [(x, y, line.get_markersize() / 2 * figure.dpi / 72) for line in lines
                  for x, y in axis.transData.transform(line.get_xydata())]  # fmt: skip
        assert len(points) > 10
        for (x1, y1, r1), (x2, y2, r2) in combinations(points, 2):
            assert math.hypot(x1 - x2, y1 - y2) >= 0.99 * (r1 + r2)
