"""The pictures of the README show runs on the lossless images, and no others."""

import json
from pathlib import Path

import pytest

from bench import frontier

RUN = {"dataset": "cifar10", "n_train": 50_000, "recipe": "swa30", "scale": "full", "epochs": 30.0, "accuracy": 0.9,
       "train_pflop": 0.7, "num_steps": 20, "seed": 0}  # fmt: skip
HISTORY = [{"epoch": 1, "step": 10, "phase": "cycle", "lr": 0.1, "momentum": 0.9, "loss_train": 2.0,
            "accuracy_test": 0.5, "time_s": 1.0}]  # fmt: skip


@pytest.fixture
def records(tmp_path):
    """Runs that count, one at another length; a variant at two lengths, and one at a single length; and a JPEG copy, a
    subset, networks, a list, a bare table."""
    rows = [RUN, {**RUN, "variant": "as it is", "accuracy": 0.92}, {**RUN, "dataset": "cifar10-jpeg"},
            {**RUN, "n_train": 20_000}, {**RUN, "variant": "lr_peak=0.2"},
            {**RUN, "variant": "epochs=5", "epochs": 5.0},
            {**RUN, "variant": "epochs=5 lr_peak=0.2", "epochs": 5.0}, {**RUN, "variant": "lr_peak=0.3"},
            {**RUN, "config": {"model": {"network": "shakedrop"}}},
            {**RUN, "config": {"network": "resnet18"}}]  # fmt: skip
    (tmp_path / "a" / "s0").mkdir(parents=True)
    (tmp_path / "a" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a" / "table.json").write_text(json.dumps({"dataset": "cifar10", "n_train": 50_000, "rows": []}))
    small = {**RUN, "scale": "small", "history": HISTORY}
    (tmp_path / "a" / "s0" / "summary.json").write_text(json.dumps(small))
    published = [{"name": "other", "epochs": 8, "train_pflop": 0.3, "accuracy": 0.94}]
    (tmp_path / "published.json").write_text(json.dumps(published))
    return tmp_path


def test_only_whole_lossless_runs_of_resnet9_are_read(records):
    runs = list(frontier.read_runs(records))
    assert [(run["scale"], run["accuracy"], frontier.settings_of(run)) for run in runs] == [
        ("full", 0.9, ""), ("full", 0.92, ""), ("full", 0.9, "lr_peak=0.2"), ("full", 0.9, ""),
        ("full", 0.9, "lr_peak=0.2"), ("full", 0.9, "lr_peak=0.3"), ("small", 0.9, "")]  # fmt: skip


def test_pictures(records, monkeypatch, capsys):
    drawn = []
    draw = frontier.draw_frontier
    monkeypatch.setattr(
        frontier, "draw_frontier", lambda path, groups, peers: drawn.append(groups) or draw(path, groups, peers)
    )
    assert frontier.main(["--records", str(records), "--out", str(records / "out")]) == 0
    assert {name: {epochs: len(runs) for epochs, runs in group.items()} for name, group in drawn[0].items()} == {
        "swa30, full": {5.0: 1, 30.0: 2}, "swa30, full, lr_peak=0.2": {5.0: 1, 30.0: 1}}  # fmt: skip
    assert {p.name for p in (records / "out").iterdir()} == {"frontier.png", "curves.png"}
    (records / "empty").mkdir()
    assert frontier.main(["--records", str(records / "empty")]) == 2
    assert "no runs on CIFAR-10" in capsys.readouterr().err


def test_the_records_of_the_repository_are_read():
    runs = list(frontier.read_runs(Path(frontier.ROOT) / "records"))
    assert len(runs) >= 16 and {"speedrun94", "swa30"} <= {run["recipe"] for run in runs}
