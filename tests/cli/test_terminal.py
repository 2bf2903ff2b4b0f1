"""A run at a terminal of 80 columns: what it prints fits, and it ends with a table, elsewhere with a line of JSON."""

import json
import re
import signal

import pytest
import torch
from commands import stop_at
from pseudo_terminal import pseudo_terminal

from fastcifar.cli import main as entry
from fastcifar.cli import train as command
from fastcifar.cli.terminal import duration, result_rows
from fastcifar.data.messages import counted
from fastcifar.observers.progress import WIDTH, Bar, epoch_line, fold, notes
from fastcifar.runs import record
from fastcifar.runs.environment import device_name

pytestmark = pytest.mark.usefixtures("here")
LOW_RES = ["--low-res-px", "24", "--low-res-until", "0.5"]


@pytest.fixture
def terminal(monkeypatch):
    """`train_fast.py` with a terminal as stdout: (exit code, lines as they stand when the bar is gone)."""

    def main(*argv):
        with pseudo_terminal(monkeypatch) as shown:
            code = entry.train(list(argv))
        (text,) = shown
        return code, [
            line for line in re.split(r"[\r\n]+", text) if line and "━" not in line and "steps, left" not in line
        ]

    return main


def table_of(lines, first):
    """Names and values of the lines from that which begins with `first`."""
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    return dict(re.split(r"  +", line, maxsplit=1) for line in lines[start:])


def test_a_run_ends_with_a_table(terminal, base, tmp_path):
    code, lines = terminal(*base, *LOW_RES, "--tta", "flip", "--out", "r")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert code == 0 and max(map(len, lines)) <= WIDTH and not any(line.startswith("{") for line in lines)
    assert table_of(lines, "accuracy, ") == {
        "accuracy, up to 2 views": f"{summary['accuracy']:.2%}",
        "averaged weights, one view": f"{summary['accuracy_swa']:.2%}",
        "raw weights, one view": f"{summary['accuracy_raw']:.2%}",
        "passes": "2",
        "training": f"{summary['time_s']['train']:.1f} s",
        "work of training": f"{summary['train_pflop']:.3g} PFLOP",
        "folder": "r",
    }
    sizes = [re.search(r"(\w+) +(\d\d px)", line) for line in lines if line.startswith("epoch ")]
    assert [size and size.groups() for size in sizes] == [("cycle", "24 px"), ("tail", "32 px")]


def test_json_is_one_unbroken_line_on_a_terminal_too(terminal, base, tmp_path):
    code, lines = terminal(*base, "--json", "--out", "r")
    assert code == 0 and json.loads(lines[-1]) == json.loads((tmp_path / "r/summary.json").read_text())
    assert lines[-2] == "results in r" and any(line.startswith("accuracy ") for line in lines)
    assert not any(line.startswith("raw weights") for line in lines)
    again = terminal("--resume", "r", "--json")[1]
    assert again[-1] == lines[-1]


def test_elsewhere_the_last_line_is_json(call, base, tmp_path):
    code, out, _ = call(*base, *LOW_RES, "--out", "r")
    assert code == 0 and json.loads(out[-1]) == json.loads((tmp_path / "r/summary.json").read_text())
    assert out[-2] == "results in r" and out[-3].startswith("accuracy ")
    assert max(map(len, out[:-3])) <= WIDTH and "  24 px  " in out[-5] and "  32 px  " in out[-4]


def test_what_is_finished_planned_and_of_several_seeds_is_a_table_too(terminal, base, tmp_path):
    code, lines = terminal(*base, "--runs", "2", "--target", "0.001", "--out", "r")
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    table = table_of(lines, "accuracy, mean of 2 seeds")
    mean, std = summary["accuracy"]["mean"], summary["accuracy"]["std"]
    assert code == 0 and table["accuracy, mean of 2 seeds"] == f"{mean:.2%} (standard deviation {std:.2%})"
    assert table["seeds that reach --target"] == "100%" and table["folder"] == "r"
    assert table_of(terminal("--resume", "r")[1], "accuracy, mean") == table
    planned = table_of(terminal(*base, "--dry-run")[1], "recipe  " + " " * 9)
    assert planned["num_steps"] == "16" and "config" not in planned


def test_the_bar_counts_the_steps_of_all_seeds_and_of_those_that_are_left(terminal, base, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Bar, "move", lambda bar, step: shown.append((step, bar.live.tasks[0].total)))
    assert terminal(*base, "--runs", "2", "--epochs", "1", "--out", "r")[0] == 0
    assert shown == [(step, 16) for step in range(1, 17)]
    record.write_lines(tmp_path / "r/runs.jsonl", json_lines(tmp_path / "r/runs.jsonl")[:1])
    (tmp_path / "r/summary.json").unlink()
    shown.clear()
    assert terminal("--resume", "r")[0] == 0
    assert shown == [(step, 8) for step in range(1, 9)]


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_is_not_told_as_many(call, base, monkeypatch):
    out = call(*base, "--stop-at", "0.001")[1]
    (stopped,) = (line for line in out if line.startswith("stopped"))
    assert stopped.startswith("stopped after 1 epoch: accuracy")
    out = call(*base, "--epochs", "1", "--batch-size", "1000", "--dry-run")[1]  # the tests have one thread
    assert ": 1 epoch x 1 step of 160 images, " in out[0] and out[1].endswith(", 1 thread")
    assert [counted(n, "epoch") for n in (0, 1, 7.5, 2_000_000)] == ["0 epochs", "1 epoch", "7.5 epochs",
                                                                     "2000000 epochs"]  # fmt: skip
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert device_name(torch.device("cpu")).endswith(", 3 threads")


def test_the_command_that_continues_stays_on_one_line(terminal, base, tmp_path, monkeypatch):
    out = "a folder of a long name/" + "that no line of a terminal has room for, " * 2
    stop_at(monkeypatch, signal.SIGTERM)
    code, lines = terminal(*base, "--out", out)
    assert code == 128 + signal.SIGTERM
    assert lines[-1].startswith("interrupted and saved; continue with: ") and lines[-1].count(out) == 1


def test_a_banner_fits_and_has_no_zero_hours(call, base, monkeypatch):
    monkeypatch.setattr(command, "matrix_flop_per_s", lambda device, dtype: 1e15)
    out = call(*base, "--dry-run")[1]
    (price,) = [line for line in out if "--scale full would take" in line]
    assert re.search(r"here at least 0\.\d*[1-9]\d* s$", price) or re.search(r"at least \S*e-\d\d s$", price), price
    assert max(map(len, out[:-1])) <= WIDTH


def test_the_price_of_the_full_network_knows_its_faster_convolutions(call, base, monkeypatch):
    """Of a CPU without AVX-512 in fp32, where a step takes half as long as its arithmetic by large products."""
    monkeypatch.setattr(command, "matrix_flop_per_s", lambda device, dtype: 1e9)
    seconds = []
    for kind in ("AVX2", "AVX512"):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda kind=kind: kind)
        monkeypatch.setattr(command, "duration", lambda s: seconds.append(s) or "s")
        call(*base, "--precision", "fp32", "--dry-run")
    assert 2 * seconds[0] == seconds[1] > 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0123, "0.012 s"), (1.0, "1 s"), (59.0, "59 s"), (90.0, "1.5 min"), (3600, "1 h"), (9000.0, "2.5 h"),
     (3.6e6, "1,000 h")],
)  # fmt: skip
def test_a_time_has_the_unit_that_suits_it(seconds, told):
    assert duration(seconds) == told


@pytest.mark.parametrize("accuracy", [None, 0.1, 1.0])
def test_an_epoch_fits_into_a_line(accuracy):
    row = {"epoch": 7, "phase": "cycle", "lr": 1.234e-05, "momentum": 0.9, "loss_train": 12.3456,
           "accuracy_test": accuracy, "time_s": 98765.4321}  # fmt: skip
    line = epoch_line(row, 999, 32)
    assert (
        len(line) <= WIDTH and line.startswith("epoch   7/999  cycle  32 px  lr 1.23e-05") and line.endswith("98765 s")
    )
    assert ("accuracy" in line) == (accuracy is not None)


def test_folding_keeps_words_whole():
    path = "runs/" + "x" * 90
    folded = fold(f"results of the run that was trained here, and of which nothing is lost, are in {path} now")
    assert path in folded.split() and folded.splitlines()[1].startswith("  ") and fold("short") == "short"


def test_a_summary_that_was_edited_still_makes_a_table():
    rows = dict(
        result_rows({"accuracy": [1], "n": "x", "time_s": 3, "epochs": "many", "accuracy_raw": {"mean": None}}, "r")
    )
    assert rows["accuracy, mean of x seeds"] == "[1]" and rows["passes"] == "many" and rows["folder"] == "r"


def test_an_average_that_does_not_pay_is_told_with_what_may_help():
    summary = {"accuracy_raw": 0.9, "accuracy_swa": 0.85, "steps_skipped_fp16": 0}
    (line,) = notes(summary)
    assert "(85.00%) are worse than the raw ones (90.00%): a longer tail" in line
    assert notes(summary | {"accuracy_swa": 0.95}) == []
