"""A list of settings is trained side by side; held-out images are not trained on and are the same in every run."""

import json
import queue
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_config, make_dataset
from processes import TINY, forkserver

from bench import harness, sweep
from fastcifar.data.messages import DataError


@pytest.fixture
def warm_server() -> None:
    """The processes of a sweep are forked from the server of these tests, which has imported torch."""
    forkserver()


def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_server: None) -> None:
    narrow = [{**job, "settings": f"{job['settings']} shape={TINY}"} for job in sweep.QUICK]
    monkeypatch.setattr(sweep, "QUICK", narrow)
    assert sweep.main(["--quick", "--data", "synthetic", "--out", str(tmp_path)]) == 0
    rows = harness.read_rows(tmp_path / "runs.jsonl")
    assert sorted(row["seed"] for row in rows) == [0, 1]
    found = {(row["n_train"], row["n_test"], row["variant"]) for row in rows}
    assert found == {(800, 200, f"scale=small epochs=1 shape={TINY}")}
    assert all(0 < row["loss_mirrored"] < 2.5 for row in rows)  # log 10 is that of a guess
    assert json.loads((tmp_path / "table.json").read_text())["dataset"] == "synthetic, 200 held out"


def test_a_stopped_sweep_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str], warm_server: None) -> None:
    """Of three runs one is there, and one has failed."""
    words = ["--data", "synthetic", "--set", f"subset=500 epochs=1 shape={TINY}", "--out", str(tmp_path)]
    jobs = [{"recipe": "speedrun94", "settings": "", "seed": seed} for seed in (0, 1)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, jobs[:1])))
    assert sweep.main(["--list", str(tmp_path / "list.jsonl"), *words]) == 0
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    (first,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    with (tmp_path / "runs.jsonl").open("a") as lines:
        lines.write(json.dumps({**json.loads(first), "seed": 1, "error": "out of memory"}) + "\n")
    assert sweep.main(["--list", str(tmp_path / "list.jsonl"), *words]) == 0
    assert "1 runs, 1 more are there" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(row["seed"], "error" in row) for row in rows] == [(0, False), (1, True), (1, False)]
    assert rows[2]["loss_last"] != rows[0]["loss_last"] and (tmp_path / "runs.jsonl").read_text().startswith(first)


def test_held_out_images_take_the_place_of_the_test_images() -> None:
    whole = make_dataset(200, 50)
    part = sweep.measured_on_held_out(whole, 50)
    assert part.x_train.shape[0] == 150 and part.x_test.shape[0] == 50
    assert np.bincount(part.y_test).tolist() == [5] * 10
    pixels = {image.tobytes() for image in part.x_train} | {image.tobytes() for image in part.x_test}
    assert pixels == {image.tobytes() for image in whole.x_train}
    again = sweep.measured_on_held_out(whole, 50)
    assert np.array_equal(part.x_test, again.x_test) and part.digest != whole.digest
    with pytest.raises(DataError, match="hold-out 200"):
        sweep.measured_on_held_out(whole, 200)


def test_a_failed_run_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(sweep.harness, "train_once", fail)
    job = {"recipe": "swa30", "settings": "epochs=1", "seed": 3}
    row = sweep.train_one(make_config(), make_dataset(20, 10))
    assert row == {"error": "RuntimeError: out of memory"}
    assert "out of memory" in sweep.describe({"number": 0, **job, **row})


@pytest.mark.parametrize(("initialized", "runs"), [(True, 1), (False, 3)], ids=["card is dead", "no card"])
def test_a_process_ends_with_its_card(initialized: bool, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others train what is left; else one process would turn all further runs into errors."""

    def fail() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(sweep, "load_images", lambda *_: None)
    monkeypatch.setattr(sweep, "train_one", lambda *_: {"error": "RuntimeError: an illegal memory access"})
    monkeypatch.setattr(sweep.torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(sweep.torch.cuda, "synchronize", fail)
    jobs = [({"recipe": "swa30", "settings": "", "seed": seed}, make_config()) for seed in range(3)]
    turn, rows = SimpleNamespace(value=0, get_lock=nullcontext), queue.Queue[dict[str, object]]()
    sweep.work(jobs, make_config(), sweep.Options(), turn, rows)
    assert rows.qsize() == runs


def test_no_run_is_begun_after_the_budget(tmp_path: Path, warm_server: None) -> None:
    lines = [json.dumps({"recipe": "speedrun94", "settings": "", "seed": seed}) for seed in range(40)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    words = ["--data", "synthetic", "--set", f"subset=500 epochs=1 shape={TINY}", "--out", str(tmp_path)]
    assert sweep.main(["--list", str(tmp_path / "list.jsonl"), "--budget-s", "100", *words], used_s=100.0) == 0
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) < 20


def test_each_text_of_settings_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[tuple[str, ...]] = []
    monkeypatch.setattr(sweep.harness, "parse", lambda *words: parsed.append(words) or make_config())  # type: ignore[func-returns-value]
    jobs = [{"recipe": "swa30", "settings": text, "seed": seed} for seed in (3, 4) for text in ("", "epochs=2")]
    configs = sweep.parse_all(jobs, "data=synthetic")
    assert parsed == [("swa30", "data=synthetic", ""), ("swa30", "data=synthetic", "epochs=2")]
    assert [config.seed for config in configs] == [3, 3, 4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line"),
        ('{"recipe": "swa30", "settings": ""}\n', "line 1: seed is missing"),
        ('{"recipe": "none", "settings": "", "seed": 0}\n', "recipe 'none' is unknown"),
        ('{"recipe": "swa30", "settings": "bogus=1", "seed": 0}\n', "bogus"),
        ("no json\n", "line 1: no JSON"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "list.jsonl").write_text(text)
    assert sweep.main(["--list", str(tmp_path / "list.jsonl"), "--data", "synthetic"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sweep.main(["--data", "synthetic"]) == 2 and "give a file" in capsys.readouterr().err
