"""How a command beside `train` ends when it is stopped or finds no memory: one line, its exit code, no half file."""

import os
import signal
import subprocess
import sys
import threading
import time

import processes
import pytest
from made_runs import make_run, write_arrays

from fastcifar import files as atomic
from fastcifar.cli import compare, doctor, ensemble, evaluate, export, lr_find, predict, schedule
from fastcifar.cli import main as cli
from fastcifar.cli.signals import NUMBERS

pytestmark = pytest.mark.usefixtures("here")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MODULES = {"evaluate": evaluate, "ensemble": ensemble, "compare": compare, "export": export, "schedule": schedule,
           "lr-find": lr_find, "predict": predict, "doctor": doctor}  # fmt: skip


def test_the_table_has_every_command():
    assert {"train", *MODULES} == set(cli.COMMANDS)


@pytest.mark.parametrize("number", CODES, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", MODULES)
def test_a_signal_ends_a_command_with_one_line(name, number, monkeypatch, capfd):
    before = [signal.getsignal(n) for n in NUMBERS]
    monkeypatch.setattr(MODULES[name], "main", lambda argv: os.kill(os.getpid(), number) or time.sleep(5))
    assert cli.main([name]) == CODES[number]
    assert capfd.readouterr() == ("", f"stopped by {signal.Signals(number).name}; no file is left half written\n")
    assert [signal.getsignal(n) for n in NUMBERS] == before


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")],
)
@pytest.mark.parametrize("name", MODULES)
def test_no_memory_is_one_line(name, error, monkeypatch, capfd):
    def fail(argv):
        raise error

    monkeypatch.setattr(MODULES[name], "main", fail)
    assert cli.main([name]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err == "error: out of memory; close other programs or use fewer images\n"


def test_a_bug_shows_its_traceback(monkeypatch, capfd):
    monkeypatch.setattr(predict, "main", lambda argv: 1 / 0)
    assert cli.main(["predict"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and "ZeroDivisionError" in lines[-1]


def test_a_signal_while_a_file_is_written_leaves_none(tmp_path, monkeypatch, capfd):
    run = make_run(tmp_path / "r", write_arrays(tmp_path / "ten.npz"))
    before = sorted(run.iterdir())
    monkeypatch.setattr(atomic.os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["evaluate", str(run)]) == 143
    assert sorted(run.iterdir()) == before and len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("words", [["train"], ["evaluate", "nowhere"]], ids=" ".join)
@pytest.mark.parametrize("number", CODES, ids=["SIGINT", "SIGTERM"])
def test_a_signal_during_the_import_is_one_line(words, number, tmp_path):
    """The process of the command is stopped while torch is imported, half a second after its start."""
    program = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, *words], cwd=processes.ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    watch = threading.Timer(60, program.kill)
    watch.start()
    assert program.stdout.readline() == "importing\n"
    program.send_signal(number)
    out, err = program.communicate()
    watch.cancel()
    assert (program.returncode, out, err) == (CODES[number], "", f"stopped by {signal.Signals(number).name}\n")


SLOW_IMPORT = """
import importlib.abc, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("importing", flush=True)
            time.sleep(30)
sys.meta_path.insert(0, Slow())
from fastcifar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [(["--help"], 0, "usage: fastcifar train"), (["--epochs", "-1"], 2, "error: epochs is -1"),
     (["--nope"], 2, "error: Unrecognized options: --nope"), (["--resume", "nowhere"], 2, "error: --resume nowhere")],
)  # fmt: skip
def test_help_and_wrong_flags_do_not_wait_for_torch(words, code, told):
    done = subprocess.run([sys.executable, "-c", SLOW_IMPORT, "train", *words], cwd=processes.ROOT, text=True,
                          capture_output=True, timeout=25)  # fmt: skip
    assert done.returncode == code and "importing" not in done.stdout and (done.stdout + done.stderr).startswith(told)


@pytest.mark.parametrize("words", [["evaluate", "r", "--out", "file"], ["compare", "r", "s", "--out", "file/c.png"]])
def test_a_place_that_cannot_be_written_is_named(words, tmp_path, capfd):
    data = write_arrays(tmp_path / "ten.npz")
    for name in ("r", "s"):
        make_run(tmp_path / name, data)
    (tmp_path / "file").touch()
    assert cli.main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: file") and "Errno" not in line and line.endswith("; choose another place"), line


@pytest.mark.parametrize("form", ["torch-export", "hub-folder"])
@pytest.mark.parametrize("out", ["/proc/x/m", "file/m"])
def test_export_finds_an_unwritable_place_before_its_work(form, out, tmp_path, monkeypatch, capfd):
    make_run(tmp_path / "r", write_arrays(tmp_path / "ten.npz"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(export.export, "export", lambda *_: pytest.fail("worked for half a minute"))
    assert cli.main(["export", "r", "--format", form, "--out", out]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert out.rpartition("/")[0] in line and "Errno" not in line
