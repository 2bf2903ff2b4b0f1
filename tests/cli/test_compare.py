"""`fastcifar compare`: curves, different settings and results of several runs; damaged files end in one line."""

import json

import pytest
from hypothesis import given
from made_runs import assert_refused, make_run
from mutation import damaged, edits, many
from PIL import Image

from fastcifar.cli import main as cli
from fastcifar.runs.plots import draw_comparison
from fastcifar.runs.results import read_results

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "a", tmp_path / "x.npz"),
            make_run(tmp_path / "b", tmp_path / "x.npz", seed=1, lr_peak=0.3, swa_start=None)]  # fmt: skip


def test_what_differs_and_what_came_out(runs, capsys, tmp_path):
    before = {p: p.read_bytes() for run in runs for p in run.iterdir()}
    assert cli.main(["compare", *map(str, runs)]) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    table = {line[:25].strip(): line[25:].split() for line in lines}
    cells = {line.split("  ")[0]: line.split()[-2:] for line in lines}
    assert lines[0].split() == ["a", "b"] and path == "compare.png" and table
    assert cells["--seed"] == ["0", "1"] and cells["--lr-peak"] == ["0.12", "0.3"]
    assert cells["--swa-lr"] == ["0.012", "-"] and cells["--swa-start"] == ["0.666667", "none"]
    assert cells["accuracy"] == ["60.00%", "60.00%"] and cells["training, seconds"] == ["3.0", "3.0"]
    assert "accuracy, with views" not in cells and not {"--epochs", "--out", "--data"} & set(cells)
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 1000
    assert before == {p: p.read_bytes() for run in runs for p in run.iterdir()}


def test_a_run_in_progress_and_a_run_of_the_same_name(runs, capsys, tmp_path):
    (runs[0] / "summary.json").unlink()
    (tmp_path / "other").mkdir()
    runs[1] = runs[1].rename(tmp_path / "other/a")
    assert cli.main(["compare", *map(str, runs), "--out", str(tmp_path / "p/c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(map(str, runs)) and (tmp_path / "p/c.png").exists()
    assert next(line for line in lines if line.startswith("accuracy ")).split() == ["accuracy", "-", "60.00%"]


def test_a_folder_named_twice_is_one_run(runs, capsys):
    a, b = map(str, runs)
    assert cli.main(["compare", a, b, f"{b}/../a"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["a", "b"]
    assert cli.main(["compare", a, f"{b}/../a"]) == 2


def test_many_runs_with_odd_names(runs, tmp_path):
    read = [read_results(run) for run in runs] * 12
    draw_comparison(tmp_path / "c.png", read, ["$\\frac$", "o\udce9"] * 12)
    assert (tmp_path / "c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "at least two"),
        (("a",), "at least two"),
        (("a", "nowhere"), "nowhere: no config.json"),
        (("a", "b", "--out", "."), "."),
        (("a", "b", "--size", "3"), "--size"),
        (("a", "b", "--out", "a/config.json/c.png"), "c.png"),
    ],
)
def test_wrong_words_are_told_in_one_line(runs, capfd, words, told):
    assert_refused(capfd, told, "compare", *words)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("metrics.jsonl", None, "is missing"),
        ("metrics.jsonl", "", "is empty"),
        ("metrics.jsonl", "{", "cannot be read"),
        ("metrics.jsonl", "[]\n", "line 1: is no table"),
        ("metrics.jsonl", '{"epoch": 1}\n{}\n', "line 2: has no epoch"),
        ("metrics.jsonl", '{"epoch": true}', "epoch is True"),
        ("metrics.jsonl", '{"epoch": 1, "loss_train": NaN}', "nan"),
        ("metrics.jsonl", '{"epoch": 1, "accuracy_test": 7}', "accuracy_test is 7"),
        ("metrics.jsonl", '{"epoch": 1' + "0" * 500 + "}", "epoch is 1000"),
        ("metrics.jsonl", "[" * 100_000, "cannot be read"),
        ("metrics.jsonl", '{"epoch": 1, "loss_train": "\\u001b[2J"}', "loss_train is"),
        ("summary.json", "", "cannot be read"),
        ("summary.json", "null", "is no table"),
        ("summary.json", '{"time_s": 3}', "time_s: is no table"),
        ("summary.json", '{"device": {}}', "device is {}"),
        ("summary.json", '{"accuracy": "high"}', "accuracy is 'high'"),
        ("config.json", "{}", "config.json"),
        ("config.json", "\x00", "config.json"),
    ],
    ids=range(18),
)
def test_damaged_files_are_told_in_one_line(runs, tmp_path, capfd, name, text, told):
    (tmp_path / "compare.png").write_text("mine")
    if text is None:
        (runs[1] / name).unlink()
    else:
        (runs[1] / name).write_text(text)
    assert_refused(capfd, told, "compare", *runs)
    assert (tmp_path / "compare.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.json"])
def test_files_damaged_at_random_are_read_or_refused(runs, capfd, monkeypatch, name):
    whole = (runs[1] / name).read_bytes()
    monkeypatch.setattr("fastcifar.cli.compare.draw_comparison", lambda *_: None)

    @many
    @given(edits=edits)
    def one(edits):
        (runs[1] / name).write_bytes(damaged(whole, edits))
        code = cli.main(["compare", *map(str, runs)])
        out, err = capfd.readouterr()
        assert (code, len(err.splitlines())) in ((0, 0), (2, 1)) and bool(out) == (code == 0), err
        assert "\x1b" not in out + err

    one()


def test_control_characters_of_a_record_do_not_reach_the_terminal(runs, capfd):
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps({**summary, "device": "\x1b[2J"}))
    assert cli.main(["compare", *map(str, runs)]) == 0
    out = capfd.readouterr().out
    assert "?[2J" in out and "\x1b" not in out
