"""--runs N: several seeds, a file with a line for each, statistics over all, and no seed trained twice."""

import json
import os
import signal

import pytest
from commands import stop_at

from fastcifar.cli import ensemble
from fastcifar.cli import train as command
from fastcifar.observers import run_files
from fastcifar.training import loop

pytestmark = pytest.mark.usefixtures("here")


def seeds_of(path):
    return {row["seed"]: row["accuracy"] for row in map(json.loads, path.read_text().splitlines())}


def test_several_seeds_go_on_where_they_were_stopped(call, base, tmp_path, monkeypatch):
    runs = [*base, "--runs", "3", "--seed", "5", "--target", "0.2"]
    code, out, _ = call(*runs, "--out", "whole")
    assert code == 0 and json.loads(out[-1])["n"] == 3
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM, calls=2)
        code, out, _ = call(*runs, "--out", "cut")
    assert code == 143 and "--resume cut" in out[-1]
    assert list(seeds_of(tmp_path / "cut/runs.jsonl")) == [5]
    begun, go = [], command._train_seed
    monkeypatch.setattr(command, "_train_seed", lambda task, seed, *more: begun.append(seed) or go(task, seed, *more))
    code, out, _ = call("--resume", "cut")
    assert code == 0 and begun == [6, 7] and json.loads(out[-1])["seeds"] == [5, 6, 7]
    assert seeds_of(tmp_path / "cut/runs.jsonl") == seeds_of(tmp_path / "whole/runs.jsonl")
    code, again, _ = call("--resume", "cut")
    assert code == 0 and again[-1] == out[-1] and begun == [6, 7]


@pytest.mark.parametrize("text", ["{", "[]\n", '{"seed": 0}\n', "null\n"])
def test_damaged_results_of_seeds_are_told(call, base, tmp_path, monkeypatch, text):
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM, calls=1)
        call(*base, "--runs", "2", "--out", "r")
    (tmp_path / "r/runs.jsonl").write_text(text)
    code, _, err = call("--resume", "r")
    assert code == 2 and len(err) == 1 and "runs.jsonl: damaged or of other seeds" in err[0]


def stop_in_the_tail(_, run):
    """SIGTERM arrives after step 13 of 16, once the checkpoint observer has looked for one."""
    if run.step == 13:
        os.kill(os.getpid(), signal.SIGTERM)


def test_every_seed_can_be_kept_and_goes_on_where_it_was_stopped(call, base, tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "SAMPLES", 2)
    flags = [*base, "--runs", "2", "--keep-all", "--seed", "5", "--swa-every", "2", "--swag-rank", "2"]
    code, out, _ = call(*flags, "--out", "whole")
    assert code == 0 and json.loads(out[-1])["n"] == 2
    names = [line.split("  ")[0] for line in out[-10:-1]]
    kinds = ["one model, mean of 2", "SWA, mean of 2", "SWAG, mean of 2", "deep ensemble of 2", "Multi-SWA of 2",
             "Multi-SWAG of 2"]  # fmt: skip
    assert names == ["model", "whole/seed5", "whole/seed6", *kinds]
    table = json.loads((tmp_path / "whole/ensemble.json").read_text())
    assert [row["model"] for row in table["table"]] == kinds and table["swag_samples"] == 2
    with monkeypatch.context() as patched:
        patched.setattr(run_files.Summary, "on_step", stop_in_the_tail)
        code, out, _ = call(*flags, "--out", "cut")
    assert code == 143 and "--resume cut" in out[-1] and (tmp_path / "cut/seed5/checkpoint.pt").exists()
    begun, go = [], loop.initial_state
    monkeypatch.setattr(loop, "initial_state", lambda *args: (state := go(*args), begun.append(state.step))[0])
    said = call("--resume", "cut")
    assert said[0] == 0 and begun == [14, 0], said
    assert seeds_of(tmp_path / "cut/runs.jsonl") == seeds_of(tmp_path / "whole/runs.jsonl")
    for name in ("seed5/model.safetensors", "seed5/swag.safetensors", "seed6/swag.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_keeping_one_seed_is_refused(call, base):
    code, _, err = call(*base, "--keep-all")
    assert code == 2 and err == ["error: --keep-all has no effect here: it belongs to several seeds (add --runs N)"]


def test_more_seeds_are_asked_for_once(call, base, tmp_path, monkeypatch):
    """The printed command goes on with all of them, and no single run becomes a job of several."""
    code, _, _ = call(*base, "--runs", "2", "--out", "r")
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM, calls=2)
        code, out, _ = call("--resume", "r", "--runs", "4")
    assert code == 143 and list(seeds_of(tmp_path / "r/runs.jsonl")) == [0, 1, 2]
    code, out, _ = call("--resume", "r")
    assert code == 0 and json.loads(out[-1])["n"] == 4
    assert call(*base, "--out", "one")[0] == 0
    before = (tmp_path / "one/summary.json").read_bytes()
    code, _, err = call("--resume", "one", "--runs", "2")
    assert code == 2 and "--resume one: holds one run, which --runs would overwrite" in err[0]
    assert (tmp_path / "one/summary.json").read_bytes() == before


def test_seeds_that_stop_at_an_accuracy_are_kept_and_measured_together(call, base, tmp_path):
    """They stop before the tail, so they have neither an average nor a Gaussian."""
    flags = [*base, "--runs", "2", "--keep-all", "--stop-at", "0.01", "--swag-rank", "2"]
    code, out, err = call(*flags, "--out", "r")
    assert code == 0 and json.loads(out[-1])["n"] == 2, err
    table = json.loads((tmp_path / "r/ensemble.json").read_text())["table"]
    assert [row["model"] for row in table] == ["one model, mean of 2", "deep ensemble of 2"]
    code, out, _ = call("--resume", "r/seed0", "--stop-at", "None")
    assert code == 0 and json.loads(out[-1])["num_steps"] == 16
    whole, stopped = (json.loads((tmp_path / f"r/seed{i}/summary.json").read_text()) for i in range(2))
    assert whole["accuracy_swa"] is not None and stopped["accuracy_swa"] is None


def test_all_seeds_hold_out_the_same_images(call, base, tmp_path):
    flags = [*base, "--val-split", "0.25"]
    assert call(*flags, "--runs", "2", "--keep-all", "--out", "r")[0] == 0
    assert call(*flags, "--seed", "1", "--out", "one")[0] == 0
    assert (tmp_path / "r/seed1/model.safetensors").read_bytes() == (tmp_path / "one/model.safetensors").read_bytes()


def test_a_signal_while_seeds_are_measured_together_loses_nothing(call, base, tmp_path, monkeypatch):
    measured = ensemble.main
    with monkeypatch.context() as patched:
        patched.setattr(ensemble, "main", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        code, out, _ = call(*base, "--runs", "2", "--keep-all", "--out", "r")
    assert code == 143 and "--resume r" in out[-1] and not (tmp_path / "r/summary.json").exists()
    assert ensemble.main is measured
    code, out, _ = call("--resume", "r")
    assert code == 0 and json.loads(out[-1])["n"] == 2 and (tmp_path / "r/ensemble.json").exists()
