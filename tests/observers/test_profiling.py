"""--profile: the trace is one that viewers read, the table names operations, and the weights stay the same."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import train_in_folder

import fastcifar
from fastcifar.cli import lr_find
from fastcifar.observers.profiling import RECORDED_STEPS, TABLE, TRACE
from fastcifar.observers.run_files import file_observers, profile_of
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer, Stop

ROOT = Path(__file__).resolve().parents[2]
TINY = '{"stem": 24, "stages": [{"width": 8}, {"width": 8}]}'


def trace_of(folder):
    return json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]


def steps_in(events):
    return sorted({event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")})


def test_the_trace_has_the_operators_of_some_steps_and_weights_stay_the_same(make_quick_task, tmp_path):
    profiled = train_in_folder(make_quick_task(epochs=2, profile=True), tmp_path).model.state_dict()
    events = trace_of(tmp_path)
    names = [event["name"] for event in events if event.get("cat") == "cpu_op"]
    assert len(steps_in(events)) == RECORDED_STEPS
    assert "aten::convolution_backward" in names and "aten::cross_entropy_loss" in names
    assert names.count("aten::cross_entropy_loss") == RECORDED_STEPS
    assert "aten::convolution_backward" in (tmp_path / TABLE).read_text()

    plain = train_in_folder(make_quick_task(epochs=2)).model.state_dict()
    assert all(torch.equal(profiled[name], plain[name]) for name in plain)


@pytest.mark.parametrize(("epochs", "recorded"), [(0.375, 0), (0.5, 1), (0.75, 3)])
def test_a_short_run_has_fewer_steps_or_a_warning(make_quick_task, tmp_path, said, epochs, recorded):
    """Eight steps an epoch: runs of 3, 4 and 6 steps."""
    task = make_quick_task(epochs=epochs, profile=True)
    result = train(task, file_observers(task, tmp_path))
    assert result.summary["num_steps"] == 8 * epochs
    if recorded:
        assert len(steps_in(trace_of(tmp_path))) == recorded
    assert (tmp_path / TABLE).exists() == bool(recorded)
    assert said == ([] if recorded else ["warning: --profile: 3 steps are too few, 4 are needed"])


def test_a_run_that_is_stopped_ends_its_profile(make_quick_task, tmp_path, said):
    class StopSoon(Observer):
        def on_step(self, run):
            if run.step == 3:
                raise Stop("enough")

    task = make_quick_task(profile=True)
    result = train(task, [StopSoon(), *file_observers(task, tmp_path)])
    assert result.summary["num_steps"] == 3 and not (tmp_path / TABLE).exists()
    assert said == ["warning: --profile: 3 steps are too few, 4 are needed"]


@pytest.mark.parametrize(("settings", "after_step", "size_px"), [
    ({}, 0, 32),
    ({"low_res_px": 16, "low_res_until": 0.34}, 8, 32),  # one epoch of three
    ({"low_res_px": 16, "low_res_until": 0.67}, 0, 16),  # two of three
    ({"low_res_px": 16, "low_res_until": 0.5, "epochs": 4.0}, 16, 32),  # two of four: the larger size
])  # fmt: skip
def test_the_profile_is_of_the_size_of_most_epochs(make_quick_task, tmp_path, settings, after_step, size_px):
    task = make_quick_task(**{"epochs": 3.0, "profile": True, **settings})
    assert profile_of(task, tmp_path).after_step == after_step
    train(task, file_observers(task, tmp_path))
    heading, _, header, *rows = (tmp_path / TABLE).read_text().splitlines()
    assert heading == f"{RECORDED_STEPS} steps, 32 images of {size_px} pixels, fp32, CPU"
    assert header.endswith("group") and any(row.endswith("convolution, forward") for row in rows)


@pytest.mark.usefixtures("here")
def test_the_table_is_printed_before_the_last_line(call, base, tmp_path):
    code, out, _ = call(*base, "--epochs", "1", "--out", "r", "--profile")
    assert code == 0 and json.loads(out[-1])["num_steps"] == 8
    table = (tmp_path / "r" / TABLE).read_text().splitlines()
    assert out[-2 - len(table) : -2] == table and out[-2] == "results in r"


@pytest.mark.usefixtures("here")
def test_without_a_card_nothing_is_said_of_one(base, tmp_path):
    """The library in torch that records writes past Python, and reads its level once in a process."""
    command = [sys.executable, str(ROOT / "train_fast.py"), *base, "--shape", TINY, "--epochs", "0.5", "--profile",
               "--out", "r"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "r" / TABLE).read_text().startswith("1 step, ")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--profile", "--runs", "2"], "it belongs to a single run"), (["--profile", "3"], "3"),
     (["--profile=yes"], "yes")],
)  # fmt: skip
def test_wrong_use_of_the_profile_is_one_line(call, base, flags, words):
    code, _, err = call(*base, *flags)
    assert code == 2 and len(err) == 1 and words in err[0]


def test_lr_find_and_a_training_without_a_folder_refuse_the_profile():
    with pytest.raises(ValueError, match="--profile has no effect here"):
        lr_find.main(["--profile", "--smoke"])
    with pytest.raises(ValueError, match="log and profile need a run folder"):
        fastcifar.train("swa30", data="synthetic", profile=True)
