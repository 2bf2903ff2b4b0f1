"""What a run leaves behind: parseable, whole or not there, with statistics that textbooks give."""

import errno
import importlib.util
import json
import math
import os
import shutil
import subprocess
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import fastcifar
from fastcifar import files
from fastcifar.config.config import Model
from fastcifar.models.networks import make_model
from fastcifar.runs import environment, intervals, model_file, record

# Student (1908): hours of sleep that ten patients gained by one drug over another; the interval as R's t.test gives it
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def test_interval_of_a_published_example():
    result = intervals.interval(SLEEP)
    assert result["n"] == 10
    assert result["mean"] == pytest.approx(1.58) and result["std"] == pytest.approx(1.229995, abs=1e-6)
    assert result["ci95"] == pytest.approx([0.7001142, 2.4598858], abs=2e-4)


# Quantile 0.975 of Student's t, from printed tables
@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (19, 2.093), (30, 2.042), (31, 2.040), (40, 2.021), (60, 2.000),
     (99, 1.984), (199, 1.972), (1000, 1.962), (100_000, 1.960)],
)  # fmt: skip
def test_interval_uses_students_t(degrees, t):
    n = degrees + 1
    values = [float(i % 2) for i in range(n)]
    result = intervals.interval(values)
    half = (result["ci95"][1] - result["ci95"][0]) / 2
    assert half / (result["std"] / math.sqrt(n)) == pytest.approx(t, abs=6e-4)


def test_points_of_t_fall_towards_the_normal_one():
    assert all(a > b for a, b in pairwise(intervals.T_95)) and len(intervals.T_95) == 30


def test_interval_of_too_few_values_claims_nothing():
    assert intervals.interval([]) == {"n": 0, "mean": None, "std": None, "ci95": None}
    assert intervals.interval([0.94]) == {"n": 1, "mean": 0.94, "std": None, "ci95": None}
    assert intervals.interval([0.94, 0.94])["ci95"] == [0.94, 0.94]


# JSON


def test_numbers_that_are_not_finite_become_null():
    value = {"a": float("nan"), "b": [float("inf"), 1.5, (float("-inf"), "x")], "c": None, "d": {"e": 2, "f": True}}
    text = record.to_json(value)
    assert json.loads(text) == {"a": None, "b": [None, 1.5, [None, "x"]], "c": None, "d": {"e": 2, "f": True}}
    assert "\n" not in text


def test_write_json_and_lines_can_be_read_back(tmp_path):
    record.write_json(tmp_path / "new" / "a.json", {"x": float("nan"), "y": [1, 2.5]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"x": None, "y": [1, 2.5]}
    record.write_lines(tmp_path / "m.jsonl", [{"epoch": 1}, {"epoch": 2, "loss": float("inf")}])
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1}, {"epoch": 2, "loss": None}]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, broken):
    path = tmp_path / "summary.json"
    record.write_json(path, {"old": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, broken, full)
    with pytest.raises(OSError, match="No space left"):
        record.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []

    def noted(name):
        real = getattr(os, name)

        def call(*args):
            calls.append(name)
            return real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, noted(name))
    record.write_json(tmp_path / "a.json", {})
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_results_can_be_read_by_others(tmp_path):
    record.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


# The model


def test_model_file_loads_back_with_plain_keys_and_metadata(tmp_path):
    model, path = make_model(Model(scale="small"), 10, seed=0), tmp_path / "model.safetensors"
    model.compile(backend="eager")
    facts = {"classes": ("cat", "dög"), "mean": (0.5, 0.25, 0.125), "accuracy": 0.9, "network": "resnet9"}
    model_file.write_model(path, model, facts)
    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())
    twin = make_model(Model(scale="small"), 10, seed=1)
    twin.load_state_dict(loaded)
    assert all(p.ndim < 4 or p.is_contiguous(memory_format=torch.channels_last) for p in twin.parameters())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("format") == model_file.FORMAT
    assert {k: json.loads(v) for k, v in metadata.items()} == json.loads(json.dumps(facts))


# Facts


def test_versions_name_all_that_computes():
    versions = environment.versions()
    assert set(versions) == {"fastcifar", "python", "torch", "torchvision", "dali", "cuda", "driver"}
    assert versions["torch"] == torch.__version__ and versions["fastcifar"] == fastcifar.__version__


def test_the_commit_of_a_repository_that_the_package_is_installed_in_is_not_ours(tmp_path):
    """An environment in the user's own repository, and the package copied into it."""
    for place in ("env/lib/site-packages", "."):
        shutil.copytree(environment.ROOT / "fastcifar", tmp_path / place / "fastcifar",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "the user's own"]):
        subprocess.run([*git, *words], check=True)
    for place in ("env/lib/site-packages", "."):
        source = importlib.util.spec_from_file_location("copy", tmp_path / place / "fastcifar/runs/environment.py")
        copy = importlib.util.module_from_spec(source)
        source.loader.exec_module(copy)
        assert tmp_path / place == copy.ROOT and copy.source_state() == {"commit": None, "dirty": None}


def test_the_commit_of_our_own_repository_is_recorded():
    if not (environment.ROOT / ".git").exists():
        pytest.skip("this is no clone")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=environment.ROOT, capture_output=True, text=True)
    state = environment.source_state()
    assert state["commit"] == head.stdout.strip() and isinstance(state["dirty"], bool)


def test_commands_that_are_missing_or_fail_are_unknown():
    assert environment._first_line("no-such-command-here") is None
    assert environment._first_line("git", "no-such-subcommand") is None


def test_peak_memory_is_of_this_process():
    peak = environment.peak_mem_mib(torch.device("cpu"))
    assert peak["device"] is None and peak["host"] is not None and 50 < peak["host"] < 1e6


# Several runs


def run_summary(seed: int, accuracy: float, train_s: float) -> dict:
    shared = dict.fromkeys(("dataset", "n_train", "n_test", "recipe", "scale", "epochs", "num_steps", "train_pflop",
                            "device", "precision", "compile", "augment", "versions", "commit", "dirty"),
                           "same")  # fmt: skip
    time_s = {"train": train_s, "swa": 0.5, "eval_final": 0.25, "eval": 9.0, "compile": 9.0}
    return {**shared, "seed": seed, "accuracy": accuracy, "accuracy_raw": accuracy - 0.01, "accuracy_swa": None,
            "accuracy_tta": accuracy, "time_s": time_s}  # fmt: skip


def test_statistics_over_runs():
    runs = [run_summary(seed, accuracy, 10.0 + seed) for seed, accuracy in enumerate((0.93, 0.94, 0.95, 0.94))]
    summary = intervals.summarize_runs(runs, target=0.94)
    assert summary["n"] == 4 and summary["seeds"] == [0, 1, 2, 3] and summary["dataset"] == "same"
    assert summary["accuracy"] == intervals.interval([0.93, 0.94, 0.95, 0.94])
    assert summary["accuracy_raw"]["mean"] == pytest.approx(0.93) and summary["accuracy_swa"] is None
    assert summary["time_to_accuracy_s"]["mean"] == pytest.approx(11.5 + 0.75)  # compile and data loading apart
    assert (summary["target"], summary["share_reached"]) == (0.94, 0.75)
    assert "share_reached" not in intervals.summarize_runs(runs, target=None)
