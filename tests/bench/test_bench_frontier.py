"""The pictures of the README show the runs that records/frontier.json names, and no others."""

import json
from pathlib import Path

import pytest

from bench import frontier

RUN = {"dataset": "cifar10", "recipe": "swa30", "variant": "as it is", "epochs": 30.0, "accuracy": 0.9,
       "train_pflop": 0.7, "num_steps": 20, "seed": 0, "scale": "full"}  # fmt: skip
HISTORY = [{"epoch": 1, "step": 10, "phase": "cycle", "lr": 0.1, "momentum": 0.9, "loss_train": 2.0,
            "accuracy_test": 0.5, "time_s": 1.0}]  # fmt: skip
SERIES = {"name": "the default", "rows": {"a/*.jsonl": "as it is", "a/s0/*.json": None}, "naive": True}


@pytest.fixture
def records(tmp_path):
    """Three runs of a series at two lengths, a variant that is not in it, and a run with curves."""
    rows = [RUN, {**RUN, "accuracy": 0.92}, {**RUN, "variant": "lr_peak=0.2"}, {**RUN, "epochs": 5.0}]
    (tmp_path / "a" / "s0").mkdir(parents=True)
    (tmp_path / "a" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a" / "s0" / "summary.json").write_text(json.dumps({**RUN, "epochs": 5, "history": HISTORY}))
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


def test_the_series_of_the_repository_are_there():
    root = Path(frontier.ROOT) / "records"
    series = {one["name"]: frontier.Series.read(root, one) for one in frontier.read_json(root / "frontier.json")}
    assert series["speedrun94"].count == "13" and series["speedrun94 on a CPU core"].count == "6"
