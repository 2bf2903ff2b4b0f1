"""The command line as a person meets it: folders, last lines, exit codes, signals, several seeds."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from bench import processes
from fastcifar import entry, interrupt, train
from fastcifar.checkpoint import load
from fastcifar.files import held
from fastcifar.folder import resume_command
from fastcifar.progress import Lines


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tiny_network):
    """Runs are made in a folder of their own, on one thread, and leave nothing behind in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_fast.py"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Flags of a run of two epochs of eight steps."""
    below = tmp_path_factory.mktemp("images")
    images = processes.write_images(below / "x.npz")
    return [*processes.FLAGS, "--data", str(images), "--cache-dir", str(below), "--epochs", "2", "--swa-start", "0.5"]


@pytest.fixture
def call(capfd):
    """Exit code, lines of stdout, lines of stderr."""

    def main(*argv):
        code = entry.main(list(argv))
        said = capfd.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return main


def stop_at(monkeypatch, number, calls=1):
    """A signal arrives when the so-manieth run begins to train."""
    begin, count = train.start, []

    def start(*args):
        count.append(1)
        if len(count) == calls:
            os.kill(os.getpid(), number)
        return begin(*args)

    monkeypatch.setattr(train, "start", start)


def stop_after(monkeypatch, last):
    """SIGTERM arrives in a step of every run from now on."""
    monkeypatch.setattr(Lines, "step", lambda _, step: step == last and os.kill(os.getpid(), signal.SIGTERM))


# A run and its folder


def test_a_run_ends_with_its_summary(call, base, tmp_path):
    code, out, err = call(*base, "--out", "r")
    assert (code, err) == (0, [])
    assert json.loads(out[-1]) == json.loads((tmp_path / "r/summary.json").read_text())
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "checkpoint.pt", "config.json", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json",
    }  # fmt: skip


def test_the_folder_is_named_after_the_run_and_never_used_twice(call, base, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcifar.folder.utc_stamp", lambda: "20260131-235959")
    monkeypatch.setattr(train, "train", lambda job: (_ for _ in ()).throw(train.Interrupted(signal.SIGTERM)))
    assert [call(*base)[0] for _ in range(2)] == [143, 143]
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"20260131-235959-swa30-s0", "20260131-235959-swa30-s0-2"}


def test_a_folder_that_holds_a_run_is_refused(call, base, tmp_path):
    assert call(*base, "--out", "r")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    code, _, err = call(*base, "--out", "r")
    assert code == 2 and len(err) == 1 and "holds a run already; continue it with --resume r" in err[0]
    assert {p: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


@pytest.mark.parametrize("flags", [["--out", "r"], ["--resume", "r"], ["--resume", "auto"]], ids=" ".join)
def test_a_run_stopped_before_its_first_checkpoint_begins_anew(call, base, tmp_path, monkeypatch, flags):
    out = "runs/r" if flags[1] == "auto" else "r"
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        patched.setattr(train, "_save", lambda *args, **kwargs: None)
        assert call(*base, "--out", out)[0] == 143
    (tmp_path / out / ".checkpoint.pt.0123abcd.part").write_bytes(b"left by a kill")
    (tmp_path / out / ".mine.part").touch()
    code, _, err = call(*(base if flags[0] == "--out" else []), *flags)
    assert (code, err) == (0, []) and load(tmp_path / out / "checkpoint.pt")["state"]["step"] == 16
    assert [p.name for p in (tmp_path / out).glob(".*")] == [".mine.part"]


@pytest.mark.parametrize("out", ["x.txt", "x.txt/r", "/proc/r"])
def test_a_folder_that_cannot_be_made_is_told(call, base, tmp_path, out):
    (tmp_path / "x.txt").touch()
    code, _, err = call(*base, "--out", out)
    assert code == 2 and len(err) == 1 and out in err[0]


def test_two_processes_do_not_train_in_one_folder(call, base, tmp_path):
    (tmp_path / "r").mkdir()
    with held(tmp_path / "r"):
        code, _, err = call(*base, "--out", "r")
    assert code == 2 and len(err) == 1 and "r: another process trains in it" in err[0]
    assert not list((tmp_path / "r").iterdir())
    assert call(*base, "--out", "r")[0] == 0


def test_a_dry_run_writes_nothing(call, base, tmp_path):
    code, out, err = call(*base, "--dry-run")
    assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16
    assert not list(tmp_path.iterdir())


# Resume


def test_a_complete_run_says_so(call, base, tmp_path):
    _, out, _ = call(*base, "--out", "r")
    before = {p: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    code, again, err = call("--resume", "r")
    assert (code, err) == (0, []) and again[-1] == out[-1] and "complete; --extend-epochs N" in again[0]
    assert {p: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before
    code, _, err = call("--resume", "auto")
    assert code == 2 and "no unfinished run" in err[0]


def test_an_extension_goes_on_by_resume_alone(call, base, tmp_path, monkeypatch):
    assert call(*base, "--out", "runs/r")[0] == 0
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        assert call("--resume", "runs/r", "--extend-epochs", "4")[0] == 143
    code, out, _ = call("--resume", "auto")
    assert code == 0 and json.loads(out[-1])["num_steps"] == 32 and json.loads(out[-1])["epochs"] == 4
    assert len((tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()) == 4


def test_what_changes_the_training_is_refused(call, base):
    assert call(*base, "--out", "r")[0] == 0
    for flags, told in ((["--seed", "7"], "seed: 0 -> 7"), (["--lr-peak", "0.5"], "lr_peak: 0.12 -> 0.5"),
                        (["--schedule", "cosine"], "schedule: onecycle -> cosine")):  # fmt: skip
        code, _, err = call("--resume", "r", *flags)
        assert code == 2 and len(err) == 1 and told in err[0]


@pytest.mark.parametrize("folder", ["", "nowhere", "x.txt"])
def test_a_folder_without_a_run_is_told(call, tmp_path, folder):
    (tmp_path / "x.txt").touch()
    code, _, err = call("--resume", folder or str(tmp_path))
    assert code == 2 and len(err) == 1 and "there is no checkpoint.pt in it" in err[0]


def test_the_printed_command_goes_on_with_the_run(call, base, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGINT)
        code, out, err = call(*base, "--out", "it's a run")
    assert code == 130 and err == ["interrupted by signal 2"]
    said, _, command = out[-1].partition(": ")
    assert said == "interrupted and saved; go on with"
    python, program, *flags = shlex.split(command)
    assert program == "train_fast.py" and "python" in python and flags == ["--resume", "it's a run"]
    assert call(*flags)[0] == 0


def test_the_command_names_what_was_started(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["some where/train_fast.py"])
    monkeypatch.setattr("sys.executable", "/opt/py/bin/python3")
    assert resume_command(tmp_path) == f"/opt/py/bin/python3 'some where/train_fast.py' --resume {tmp_path}"
    assert resume_command(tmp_path, 4).startswith("torchrun --nproc-per-node=4 'some where/train_fast.py' --resume")


# Exit codes


def test_errors_are_one_line_and_a_traceback_with_debug(call, base):
    code, out, err = call(*base, "--epochs", "-1")
    assert (code, out, len(err)) == (2, [], 1) and err[0].startswith("error: ")
    code, _, err = call(*base, "--epochs", "-1", "--debug")
    assert code == 2 and err[0].startswith("Traceback") and err[-1].startswith("error: ")


def test_divergence_ends_with_3(call, base):
    code, _, err = call(*base, "--lr-peak", "1e20", "--out", "r")
    assert code == 3 and len(err) == 1 and "training diverged: " in err[0] and "lower --lr-peak" in err[0]


def test_a_mistake_of_the_program_shows_its_traceback(call, base, monkeypatch):
    monkeypatch.setattr(entry, "banner", lambda job: 1 / 0)
    code, _, err = call(*base, "--out", "r")
    assert code == 1 and err[0].startswith("Traceback") and "ZeroDivisionError" in err[-1]


# Signals


def test_a_signal_before_training_ends_cleanly(call, base, monkeypatch):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with monkeypatch.context() as patched:
            patched.setattr(entry.data, "load", lambda *a, number=number, **k: os.kill(os.getpid(), number))
            assert call(*base, "--out", "r")[::2] == (code, [
                f"stopped by {signal.Signals(number).name} before training began; nothing is lost"
            ])  # fmt: skip
    assert call(*base, "--out", "r")[0] == 0


def test_handlers_are_put_back(call, base):
    before = [signal.getsignal(n) for n in interrupt.NUMBERS]
    call(*base, "--dry-run")
    assert [signal.getsignal(n) for n in interrupt.NUMBERS] == before


def test_a_second_sigint_ends_at_once(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    signals = interrupt.Signals("train")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals(), ends) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == []
        os.kill(os.getpid(), signal.SIGINT)
        assert ends == [130]
    finally:
        signals.restore()


def hears(pid, number):
    """Whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status") as f:
        caught = next(line for line in f if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_importing_ends_cleanly(base, number, code, tmp_path):
    child = subprocess.Popen([sys.executable, str(processes.ROOT / "train_fast.py"), *base], stderr=subprocess.PIPE,
                             text=True, env=processes.one_thread())  # fmt: skip
    assert processes.wait_until(lambda: hears(child.pid, signal.SIGTERM), 30)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code and len(err.splitlines()) == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_process_of_its_own(base, number, code, tmp_path):
    process = processes.start([*base, "--epochs", "5000", "--out", str(tmp_path / "r")], tmp_path / "log")
    assert processes.wait_until((tmp_path / "r/metrics.jsonl").exists, 120)
    os.kill(process.pid, number)
    assert processes.join_all([process]) == [code]
    assert "interrupted and saved; go on with: " in (tmp_path / "log").read_text()
    assert load(tmp_path / "r/checkpoint.pt")["state"]["step"] >= 8


# Several seeds


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
    begun, go = [], entry._train_seed
    monkeypatch.setattr(entry, "_train_seed", lambda job, seed: begun.append(seed) or go(job, seed))
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
