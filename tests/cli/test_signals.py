"""SIGINT and SIGTERM in every phase of a run: it ends cleanly, and what can be saved is saved."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import processes
import pytest

from fastcifar.cli import train as command
from fastcifar.cli.signals import NUMBERS, Signals, Stopped
from fastcifar.observers.progress import Lines
from fastcifar.observers.run_files import ModelFile
from fastcifar.runs.checkpoint import load
from fastcifar.training.observer import Stop

pytestmark = pytest.mark.usefixtures("here")


def test_a_signal_before_training_ends_cleanly(call, base, monkeypatch):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with monkeypatch.context() as patched:
            patched.setattr(command, "load_of", lambda *a, number=number, **k: os.kill(os.getpid(), number))
            assert call(*base, "--out", "r")[::2] == (code, [
                f"stopped by {signal.Signals(number).name} before training began; nothing is lost"
            ])  # fmt: skip
    assert call(*base, "--out", "r")[0] == 0


def test_handlers_are_put_back(call, base):
    before = [signal.getsignal(n) for n in NUMBERS]
    call(*base, "--dry-run")
    assert [signal.getsignal(n) for n in NUMBERS] == before


def test_a_second_sigint_ends_at_once(monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    signals = Signals("train")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals(), ends) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == []
        os.kill(os.getpid(), signal.SIGINT)
        assert ends == [130]
    finally:
        signals.restore()


@pytest.fixture
def handlers():
    """Makes handlers in a given phase; the ones before are put back in the end."""
    made = []

    def make(phase):
        made.append(Signals(phase))
        return made[-1]

    yield make
    for signals in reversed(made):
        signals.restore()


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_a_signal_in_the_finish_phase_raises(handlers, number):
    signals = handlers("finish")
    with pytest.raises(Stopped, match=r"stopped by SIG\w+ after the last step, which is saved") as end:
        os.kill(os.getpid(), number)
    assert end.value.number == number == signals()


def test_after_the_last_epoch_a_signal_ends_the_run_at_once(handlers):
    signals = handlers("train")
    for _ in range(2):
        signals.on_epoch(SimpleNamespace(is_over=False), {})
        assert signals.phase == "train"
    signals.on_epoch(SimpleNamespace(is_over=True), {})
    assert signals.phase == "finish"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_while_it_finishes_goes_on_by_resume(call, base, monkeypatch, tmp_path, number, code):
    with monkeypatch.context() as patched:
        patched.setattr(ModelFile, "on_end", lambda *args: os.kill(os.getpid(), number))
        found, out, err = call(*base, "--out", "r")
    name = signal.Signals(number).name
    assert (found, err) == (code, [f"stopped by {name} after the last step, which is saved"])
    assert out[-1].startswith("interrupted and saved; continue with: ") and "--resume r --compile off" in out[-1]
    assert load(tmp_path / "r/checkpoint.pt")["state"]["step"] == 16 and not (tmp_path / "r/summary.json").exists()
    assert call("--resume", "r")[0] == 0 and (tmp_path / "r/summary.json").exists()


def test_a_signal_ends_a_run_at_once_while_it_finishes_early(call, base, monkeypatch, tmp_path):
    """A run that was stopped before its last step: its state is saved, and nothing is left to wait for."""
    seen = []

    def stop(self, run):
        if run.step == 3:
            raise Stop("enough")

    def finish(self, result):
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("waited")

    monkeypatch.setattr(Lines, "on_step", stop)
    monkeypatch.setattr(ModelFile, "on_end", finish)
    code, _, err = call(*base, "--out", "r")
    assert (code, err, seen) == (143, ["stopped by SIGTERM after the last step, which is saved"], [])
    assert load(tmp_path / "r/checkpoint.pt")["state"]["step"] == 3 and not (tmp_path / "r/summary.json").exists()


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


@pytest.mark.xdist_group("warm processes")  # one server forks them all
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_process_of_its_own(base, number, code, tmp_path):
    process = processes.start([*base, "--epochs", "5000", "--out", str(tmp_path / "r")], tmp_path / "log")
    assert processes.wait_until((tmp_path / "r/metrics.jsonl").exists, 120)
    os.kill(process.pid, number)
    assert processes.join_all([process]) == [code]
    assert "interrupted and saved; continue with: " in (tmp_path / "log").read_text()
    assert load(tmp_path / "r/checkpoint.pt")["state"]["step"] >= 8
