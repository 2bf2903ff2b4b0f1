"""--log: what TensorBoard, Trackio and Weights & Biases are told, also over an interruption, and what may go wrong.

TensorBoard is always the real one. The others are fakes with the signatures of the real ones, and the real ones where
they are installed.
"""

import inspect
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import stop_after
from conftest import PLAIN, Recorder, train_in_folder

import fastcifar
from fastcifar.cli import lr_find
from fastcifar.config.command import Command
from fastcifar.observers import trackers
from fastcifar.observers.trackers import make_tracker

NAMES = {"loss_train", "loss_test", "lr", "momentum", "accuracy", "epoch"}


class FakeTrackio:
    def __init__(self):
        self.started, self.rows, self.finished = [], [], 0

    def init(self, project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, bucket_id=None,
             config=None, resume="never", settings=None, private=None, embed=True, auto_log_gpu=None,
             gpu_log_interval=10.0, auto_log_cpu=None, cpu_log_interval=10.0, webhook_url=None,
             webhook_min_level=None):  # fmt: skip
        print("* Trackio project initialized")
        self.started.append((project, name, config, resume))

    def log(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def finish(self):
        self.finished += 1


class FakeWandb:
    def __init__(self):
        self.started, self.rows, self.finished = [], [], 0

    def init(self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
             config=None, config_exclude_keys=None, config_include_keys=None, allow_val_change=None, group=None,
             job_type=None, mode=None, force=None, reinit=None, resume=None, resume_from=None, fork_from=None,
             save_code=None, tensorboard=None, sync_tensorboard=None, monitor_gym=None, settings=None):  # fmt: skip
        self.started.append((project, id, config, resume))
        assert os.path.isdir(dir) and settings.console == "off"
        return self

    def Settings(self, console):
        return SimpleNamespace(console=console)

    def log(self, data, step=None, commit=None):
        self.rows.append((step, dict(data)))

    def finish(self, exit_code=None):
        self.finished += 1


@pytest.fixture(params=["trackio", "wandb"])
def fake(request, monkeypatch):
    module = {"trackio": FakeTrackio, "wandb": FakeWandb}[request.param]()
    module.name = request.param
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    return module


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def scalars_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}, events


def test_tensorboard_gets_rows_settings_and_summary(make_quick_task, tmp_path):
    result = train_in_folder(make_quick_task(epochs=2, log="tensorboard"), tmp_path)
    scalars, events = scalars_of(tmp_path / "tensorboard")
    rows = metrics_of(tmp_path)
    assert set(scalars) >= NAMES
    for name in NAMES:
        key = "accuracy_test" if name == "accuracy" else name
        assert scalars[name] == [(row["step"], pytest.approx(row[key])) for row in rows], name
    assert scalars["summary/accuracy"] == [(16, pytest.approx(result.summary["accuracy"]))]
    assert scalars["summary/time_s/train"] == [(16, pytest.approx(result.summary["time_s"]["train"]))]
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text)["batch_size"] == 32
    assert any(
        plugin == "hparams"
        for plugin in events.summary_metadata["_hparams_/experiment"].plugin_data.plugin_name.split()
    )


def test_logging_changes_no_result(make_quick_task, tmp_path):
    logged = train_in_folder(make_quick_task(epochs=2, log="tensorboard"), tmp_path).model.state_dict()
    plain = train_in_folder(make_quick_task(epochs=2)).model.state_dict()
    assert all(torch.equal(logged[name], plain[name]) for name in plain)


def test_trackio_and_wandb_get_rows_settings_and_summary(make_quick_task, tmp_path, fake, capfd):
    result = train_in_folder(make_quick_task(epochs=2, log=fake.name), tmp_path)
    ((project, _, settings, resume),) = fake.started
    assert (project, resume, settings["batch_size"], fake.finished) == ("fastcifar", "allow", 32, 1)
    rows = metrics_of(tmp_path)
    assert [(step, values["loss_train"]) for step, values in fake.rows[:2]] == [
        (r["step"], r["loss_train"]) for r in rows
    ]
    assert set(fake.rows[0][1]) == NAMES
    step, summary = fake.rows[2]
    assert (
        step == rows[-1]["step"]
        and summary["summary/accuracy"] == result.summary["accuracy"]
        and "summary/time_s/wall" in summary
    )
    assert capfd.readouterr().out == ""  # the last line on stdout is the run's


def test_a_project_of_the_environment_is_taken(tmp_path, fake, monkeypatch):
    monkeypatch.setenv(f"{fake.name.upper()}_PROJECT", "mine")
    make_tracker(PLAIN, Command(log=fake.name), tmp_path)
    assert [project for project, *_ in fake.started] == ["mine"]


def test_name_id_and_folder_of_the_environment_are_taken(tmp_path, monkeypatch):
    given = {"name": "mine", "id": "abc", "dir": str(tmp_path / "elsewhere")}
    for key, variable in {"name": "WANDB_NAME", "id": "WANDB_RUN_ID", "dir": "WANDB_DIR"}.items():
        monkeypatch.setenv(variable, given[key])
    took = {}
    program = SimpleNamespace(init=lambda **values: took.update(values), Settings=lambda console: console)
    monkeypatch.setitem(sys.modules, "wandb", program)
    make_tracker(PLAIN, Command(log="wandb"), tmp_path)
    assert {key: took[key] for key in given} == given and "entity" not in took and "mode" not in took


@pytest.mark.usefixtures("here")
def test_a_resumed_run_goes_on_in_the_same_log(call, base, tmp_path, monkeypatch, fake):
    """Stopped in the first or second epoch, and with its checkpoint lost: what was logged is not logged again."""
    with monkeypatch.context() as patched:
        last = {"trackio": 12, "wandb": 4}[fake.name]
        stop_after(patched, last)
        assert call(*base, "--out", "r", "--log", fake.name)[0] == 143
    (tmp_path / "r/checkpoint.pt").unlink()
    assert len(fake.rows) == last // 8 and call("--resume", "r", "--log", fake.name)[0] == 0
    (_, first, _, _), (_, second, _, _) = fake.started
    assert first == second
    assert [step for step, values in fake.rows if "loss_train" in values] == [8, 16]


def rows_of(count):
    return [{"epoch": e, "step": 8 * e, "loss_train": 2.0, "lr": 0.1, "momentum": 0.9, "accuracy_test": None}
            for e in range(1, count + 1)]  # fmt: skip


def log_rows(out, count, **command):
    """A tracker that sees the last of some epochs."""
    rows = rows_of(count)
    make_tracker(PLAIN, Command(**command), out).on_epoch(SimpleNamespace(history=rows), rows[-1])


def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path):
    for resume, count in ((None, 2), (str(tmp_path), 2), (str(tmp_path), 3)):
        log_rows(tmp_path, count, log="tensorboard", resume=resume)
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")[0]["loss_train"]] == [8, 16, 24]


def test_a_new_run_in_a_folder_replaces_the_rows_in_tensorboard(tmp_path):
    for count in (3, 1):
        log_rows(tmp_path, count, log="tensorboard")
    assert [step for step, _ in scalars_of(tmp_path / "tensorboard")[0]["loss_train"]] == [8]


def test_a_new_run_in_a_folder_is_a_new_log(tmp_path, fake):
    for _ in range(2):
        log_rows(tmp_path, 2, log=fake.name)
    assert len({name for _, name, _, _ in fake.started}) == 2 and [step for step, _ in fake.rows] == [8, 16, 8, 16]


def test_a_log_that_begins_at_a_resume_gets_the_earlier_rows(tmp_path, fake):
    log_rows(tmp_path, 2, log=fake.name, resume=str(tmp_path))
    assert [step for step, _ in fake.rows] == [8, 16] and "accuracy" not in fake.rows[0][1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": "../x", "step": 1}', '{"id": 3, "step": 1}'])
def test_a_damaged_file_of_the_log_is_told(tmp_path, content):
    (tmp_path / "log-wandb.json").write_text(content)
    with pytest.raises(ValueError, match=r"^\S+log-wandb.json: damaged \(.*\); remove it to begin a new log$"):
        make_tracker(PLAIN, Command(log="wandb", resume=str(tmp_path)), tmp_path)


def test_a_log_that_fails_is_a_warning(make_quick_task, tmp_path, fake, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("the server is gone\nand more")

    monkeypatch.setattr(fake, "log", fail)
    recorder = Recorder()
    train_in_folder(make_quick_task(epochs=2, log=fake.name), tmp_path, progress=recorder)
    assert (tmp_path / "summary.json").exists() and fake.finished == 0
    (warning,) = [line for line in recorder.lines if "warning" in line]
    assert f"--log {fake.name} failed (the server is gone); training goes on" in warning


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_told_before_anything_is_written(call, base, tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    code, out, err = call(*base, "--out", "r", "--log", name)
    assert (code, out, len(err)) == (2, [], 1) and err[0].endswith(f"pip install {name}")
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("here")
def test_a_program_that_does_not_start_is_told(call, base, fake, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(fake, "init", fail)
    code, _, err = call(*base, "--out", "r", "--log", fake.name)
    assert code == 2 and len(err) == 1 and "does not start: No API key" in err[0]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--log", "paper"], "paper"), (["--log"], "--log"), (["--log", "tensorboard", "--runs", "2"], "single run")],
)
def test_wrong_use_is_one_line(call, base, flags, words):
    code, _, err = call(*base, *flags)
    assert code == 2 and len(err) == 1 and words in err[0]


def test_lr_find_and_a_training_without_a_folder_refuse_it():
    with pytest.raises(ValueError, match="--log has no effect here"):
        lr_find.main(["--log", "tensorboard", "--smoke"])
    with pytest.raises(ValueError, match="log and profile need a run folder"):
        fastcifar.train("swa30", data="synthetic", log="tensorboard")


# The real ones, where they are installed


@pytest.fixture(scope="module")
def trackio(tmp_path_factory):
    """Trackio with a data base of the test's own; it reads the place when it is imported."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        yield pytest.importorskip("trackio")


def assert_takes(real, fake):
    assert set(inspect.signature(fake).parameters) - {"self"} <= set(inspect.signature(real).parameters)


def test_trackio_itself(make_quick_task, tmp_path, trackio):
    assert_takes(trackio.init, FakeTrackio.init)
    assert_takes(trackio.log, FakeTrackio.log)
    train_in_folder(make_quick_task(epochs=2, log="trackio"), tmp_path / "run")
    name = f"run-{json.loads((tmp_path / 'run/log-trackio.json').read_text())['id']}"
    base = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "fastcifar.db")
    rows = base.execute("select step, metrics from metrics where run_name = ?", (name,)).fetchall()
    assert sorted(step for step, _ in rows) == [8, 16, 16]
    assert {key for _, metrics in rows for key in json.loads(metrics)} >= {*NAMES, "summary/accuracy"}


def test_wandb_itself_without_network(make_quick_task, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    assert_takes(wandb.init, FakeWandb.init)
    assert_takes(wandb.Run.log, FakeWandb.log)  # of which the functions of the module are those of the last run
    assert_takes(wandb.Run.finish, FakeWandb.finish)
    monkeypatch.setenv("WANDB_MODE", "offline")
    train_in_folder(make_quick_task(epochs=2, log="wandb"), tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    names = [name.encode() for name in [*NAMES, "summary/accuracy", "label_smoothing"]]
    deadline = time.monotonic() + 20  # a process of wandb writes the file, and may still be at it
    while not all(name in log.read_bytes() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.1)
