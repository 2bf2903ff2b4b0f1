"""Signals that arrive while a run trains in this process."""

import os
import shutil
import signal

from fastcifar.observers.progress import Lines
from fastcifar.training import loop


def stop_at(monkeypatch, number, calls=1):
    """A signal arrives when the so-manieth run begins to train."""
    begin, count = loop.initial_state, []

    def start(*args):
        count.append(1)
        if len(count) == calls:
            os.kill(os.getpid(), number)
        return begin(*args)

    monkeypatch.setattr(loop, "initial_state", start)


def stop_after(monkeypatch, last):
    """SIGTERM arrives in a step of every run from now on."""
    monkeypatch.setattr(Lines, "on_step", lambda _, run: run.step == last and os.kill(os.getpid(), signal.SIGTERM))


# A run that was interrupted in its tail, at step 14 of 16, and what --resume makes of it

_made = {}


def interrupted_run(request):
    """A folder of the test's own with that run in it; the run itself is made once."""
    call, base, monkeypatch, tmp_path = map(request.getfixturevalue, ("call", "base", "monkeypatch", "tmp_path"))
    if not _made:
        out = request.getfixturevalue("tmp_path_factory").mktemp("made") / "r"
        with monkeypatch.context() as patched:
            stop_after(patched, 14)
            assert call(*base, "--out", str(out))[0] == 143
        _made["r"] = out
    shutil.copytree(_made["r"], tmp_path / "r")
    return tmp_path / "r"


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def assert_refused(call, run, told):
    """The run is refused in one line with `told` in it, and nothing of it has changed."""
    before = files(run)
    code, _, err = call("--resume", str(run))
    assert code == 2 and len(err) == 1 and err[0].startswith("error: ") and told in err[0], (code, err)
    assert len(err[0]) < 1000 and files(run) == before
