"""--runs N: several seeds, a file with a line for each, statistics over all, and no seed trained twice."""

import json
import signal

import pytest
from commands import stop_at

from fastcifar.cli import seeds

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
    assert code == 143 and out[-1].endswith("--resume cut")
    assert list(seeds_of(tmp_path / "cut/runs.jsonl")) == [5]
    begun, go = [], seeds._train_seed
    monkeypatch.setattr(seeds, "_train_seed", lambda task, seed, *more: begun.append(seed) or go(task, seed, *more))
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
