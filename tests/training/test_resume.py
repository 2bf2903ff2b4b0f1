"""A run that was cut anywhere and resumed ends as the run that was not: bit for bit, times apart."""

import json
import shutil
from dataclasses import replace

import kills
import processes
import pytest
import torch
from comparison import run_with_cuts, same, stop_at_step, weights, without_times
from conftest import Recorder, make_dataset, train_in_folder
from safetensors.torch import load_file

from fastcifar.config.schedules import PerEpoch
from fastcifar.observers.checkpoints import Interrupted
from fastcifar.runs import checkpoint
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch

STEPS = 24  # 3 epochs of 8 steps; the tail begins at step 16


def assert_same(a, b, out_a, out_b):
    for x, y in (
        (a.model.state_dict(), b.model.state_dict()),
        *((checkpoint.load(o / "checkpoint.pt")["state"]["model"] for o in (out_a, out_b)),),
    ):
        assert x.keys() == y.keys()
        assert [k for k in x if not torch.equal(x[k], y[k])] == []
    assert without_times(a.history) == without_times(b.history)
    for name in ("accuracy", "accuracy_raw", "accuracy_swa", "loss_last", "swa_recorded", "num_steps"):
        assert a.summary[name] == b.summary[name]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The uninterrupted runs, each made once."""
    made = {}

    def get(make_quick_task, **settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp("whole")
            made[key] = run_with_cuts(make_quick_task, out, **settings), out
        return made[key]

    return get


@pytest.fixture
def finished(make_quick_task, whole_run, tmp_path):
    """Folder of a finished run of one epoch, this test's own."""
    return shutil.copytree(whole_run(make_quick_task, epochs=1)[1], tmp_path / "r")


@pytest.mark.parametrize(
    "cuts",
    [(1,), (3,), (5, 8, 13, 16, 17, 20, 23, STEPS)],
    ids=lambda cuts: "cut after " + ",".join(map(str, cuts)),
)
def test_a_resumed_run_is_the_uninterrupted_one(make_quick_task, deterministic, whole_run, tmp_path, cuts):
    whole, whole_out = whole_run(make_quick_task, deterministic=True)
    again = run_with_cuts(make_quick_task, tmp_path / "r", cuts, deterministic=True)
    assert_same(again, whole, tmp_path / "r", whole_out)
    lines = (tmp_path / "r/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == again.history
    saved = checkpoint.load(tmp_path / "r/checkpoint.pt")["state"]
    assert saved["step"] == STEPS and saved["history"] == again.history


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "shakeshake26", "epochs": 2, "low_res_px": 16, "low_res_until": 0.75},
        {"network": "shakedrop", "epochs": 2, "low_res_px": 16, "low_res_until": 0.75},
        {"swa_start": None, "schedule": "multistep"},
        {"eval_every": 2, "checkpoint_every": 2, "mirror": "random"},
    ],
    ids=str,
)
def test_resume_under_other_settings(make_quick_task, deterministic, whole_run, tmp_path, settings):
    """More of them in test_resume_loop.py."""
    whole, whole_out = whole_run(make_quick_task, deterministic=True, **settings)
    again = run_with_cuts(make_quick_task, tmp_path / "r", (4, 15), deterministic=True, **settings)
    assert_same(again, whole, tmp_path / "r", whole_out)


def test_two_deterministic_runs_are_equal(make_quick_task, deterministic, whole_run, tmp_path):
    whole, whole_out = whole_run(make_quick_task, deterministic=True)
    again = run_with_cuts(make_quick_task, tmp_path / "r", deterministic=True)
    assert_same(again, whole, tmp_path / "r", whole_out)


def test_a_schedule_of_ones_own_resumes(make_quick_task, deterministic, tmp_path):
    """No file holds a function: the run that goes on brings it again."""

    def with_peak(peak):
        schedule = PerEpoch(peak=peak, factor=lambda epoch: 0.5**epoch)

        def make(**settings):
            made = make_quick_task(**settings)
            return replace(made, config=replace(made.config, schedule=schedule))

        return make

    whole = train_in_folder(with_peak(0.5)(), tmp_path / "a")
    assert [row["lr"] for row in whole.history[:2]] == [0.5, 0.25]
    assert json.loads((tmp_path / "a/summary.json").read_text())["config"]["schedule"]["name"] == "per-epoch"
    again = run_with_cuts(with_peak(0.5), tmp_path / "b", (11,))
    assert_same(again, whole, tmp_path / "b", tmp_path / "a")
    for other in (with_peak(0.4), make_quick_task):
        with pytest.raises(ValueError, match="a function from Python, which the file does not hold"):
            train_in_folder(other(resume=str(tmp_path / "b")), tmp_path / "b")


def test_a_checkpoint_holds_everything(make_quick_task, tmp_path):
    run_with_cuts(make_quick_task, tmp_path / "r")
    content = torch.load(tmp_path / "r/checkpoint.pt", weights_only=True)
    assert set(content) == {"schema", "config", "digest", "state"}
    assert content["schema"] == checkpoint.SCHEMA and content["digest"] == make_dataset().digest
    assert set(content["state"]) == {"model", "optimizers", "loss_scale", "schedule", "mean", "loss_sum", "step",
                                     "history", "time_s"}  # fmt: skip
    assert content["state"]["mean"]["count"] == 1 and len(content["state"]["history"]) == 3
    assert all(isinstance(m, torch.Tensor) for momenta in content["state"]["optimizers"] for m in momenta)


def test_the_loss_scale_goes_on(make_quick_task):
    task = make_quick_task()
    task = replace(task, hardware=replace(task.hardware, dtype=torch.float16))
    state, resumed = (initial_state(task, Stopwatch()) for _ in range(2))
    state.scaler.scale(torch.ones(()))
    state.scaler.update(1024.0)
    resumed.load(state.tree())
    assert resumed.scaler.get_scale() == resumed.scaler.scale(torch.ones(())).item() == 1024


def test_times_go_on(make_quick_task, tmp_path):
    first = train_in_folder(make_quick_task(), tmp_path)
    again = train_in_folder(make_quick_task(resume=str(tmp_path)), tmp_path)
    assert again.summary["time_s"]["train"] >= first.summary["time_s"]["train"] > 0


# What `auto` came to


def test_a_checkpoint_says_what_auto_came_to(make_quick_task, tmp_path):
    run_with_cuts(make_quick_task, tmp_path / "r", scale="auto", precision="auto", epochs=1)
    config = checkpoint.load(tmp_path / "r/checkpoint.pt")["config"]
    assert config["model"]["scale"] == "small" and config["machine"]["precision"] in ("bf16", "fp32")


# What may not change


@pytest.mark.parametrize(
    "setting", [{"seed": 1}, {"lr_peak": 0.25}, {"epochs": 4}, {"batch_size": 16}, {"scale": "full"}]
)
def test_what_changes_the_training_is_refused(make_quick_task, finished, setting):
    ((name, value),) = setting.items()
    with pytest.raises(checkpoint.CheckpointError, match=rf"may not change within a run: .*{name}: .* -> {value}"):
        run_with_cuts(make_quick_task, finished, **{"epochs": 1, "resume": str(finished), **setting})


@pytest.mark.parametrize(
    "setting",
    [{"precision": "bf16"}, {"deterministic": True}, {"runs": 2}, {"eval_every": 2}, {"tta": "flip"}, {"smoke": True},
     {"checkpoint_every": 2}, {"target": 0.5}, {"cuda_graph": False}],
    ids=str,
)  # fmt: skip
def test_what_does_not_decide_the_weights_may_change(make_quick_task, finished, setting):
    again = train_in_folder(make_quick_task(epochs=1, resume=str(finished), **setting), finished)
    assert [row["step"] for row in again.history] == [8]


def test_measuring_otherwise_from_a_resumed_epoch_on_changes_no_weight(make_quick_task, deterministic, tmp_path):
    whole = run_with_cuts(make_quick_task, tmp_path / "whole")
    recorder = Recorder()
    with pytest.raises(Interrupted):
        train_in_folder(make_quick_task(), tmp_path / "cut", stop_at_step(recorder, 5), recorder)
    task = make_quick_task(resume=str(tmp_path / "cut"), eval_every=2, tta="flip", deterministic=True)
    again = train_in_folder(task, tmp_path / "cut")
    assert [row["accuracy_test"] is not None for row in again.history] == [False, True, True]
    assert same(weights(again), weights(whole))


def test_other_images_are_refused(make_quick_task, finished):
    other = make_dataset(seed=3)
    with pytest.raises(checkpoint.CheckpointError, match="the images are not those it was trained on"):
        run_with_cuts(make_quick_task, finished, data_set=other, epochs=1, resume=str(finished))


def test_a_folder_without_a_run_is_refused(make_quick_task, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint to resume from"):
        run_with_cuts(make_quick_task, tmp_path, resume=str(tmp_path / "nothing"))


# Extension


def test_an_extended_tail_is_that_of_a_longer_run(make_quick_task, deterministic, tmp_path):
    longer = run_with_cuts(make_quick_task, tmp_path / "a", epochs=5, swa_start=2.0)
    run_with_cuts(make_quick_task, tmp_path / "b", epochs=3, swa_start=2.0)
    settings = {"epochs": 3, "swa_start": 2.0, "resume": str(tmp_path / "b"), "extend_epochs": 5}
    extended = run_with_cuts(make_quick_task, tmp_path / "b", (30,), **settings)
    assert_same(extended, longer, tmp_path / "b", tmp_path / "a")


def test_an_extended_run_that_ended_inside_an_epoch(make_quick_task, tmp_path):
    run_with_cuts(make_quick_task, tmp_path / "r", epochs=2.5, swa_start=2.0)
    extended = run_with_cuts(
        make_quick_task, tmp_path / "r", epochs=2.5, swa_start=2.0, resume=str(tmp_path / "r"), extend_epochs=4
    )
    assert [row["step"] for row in extended.history] == [8, 16, 20, 24, 32]
    assert all(0 < row["loss_train"] < 5 for row in extended.history)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"swa_start": None, "extend_epochs": 5}, "no averaging tail"),
        ({"swa_start": 2.0, "extend_epochs": 2}, "shorter than the run it extends"),
    ],
)
def test_an_extension_that_makes_no_sense_is_refused(make_quick_task, tmp_path, settings, told):
    run_with_cuts(make_quick_task, tmp_path / "r", swa_start=settings["swa_start"])
    with pytest.raises(ValueError, match=told):
        run_with_cuts(make_quick_task, tmp_path / "r", **settings, resume=str(tmp_path / "r"))


# SIGKILL


@pytest.mark.xdist_group("warm processes")  # one server forks them all
def test_killed_runs_lose_nothing(tmp_path):
    """Three kills; `tests/kills.py` makes fifty."""
    assert kills.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "kills.json").read_text())["kills"]
    assert len(found) == 3 and all(kill["equal"] for kill in found)


# Two at once


@pytest.mark.xdist_group("warm processes")
def test_two_trainings_at_once_on_an_empty_cache(tmp_path):
    """Both write the decoded images and both train on whole ones: as a third run that finds them there."""
    flags = [*processes.FLAGS, "--data", str(processes.write_images(tmp_path / "images.npz")), "--epochs", "2"]
    flags += ["--cache-dir", str(tmp_path / "cache")]

    def begin(name):
        return processes.start([*flags, "--out", str(tmp_path / name)], tmp_path / f"{name}.log")

    assert processes.join_all([begin("a"), begin("b")]) == [0, 0], (tmp_path / "a.log").read_text()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert processes.join_all([begin("c")]) == [0] and "decoding" not in (tmp_path / "c.log").read_text()
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) and torch.equal(a[k], c[k]) for k in a)
