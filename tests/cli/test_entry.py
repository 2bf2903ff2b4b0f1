"""The command line as a person meets it: run folders, last lines, exit codes."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from commands import stop_at
from matplotlib.figure import Figure
from processes import ROOT

from fastcifar import __version__
from fastcifar.cli import export
from fastcifar.cli import main as fastcifar
from fastcifar.cli import train as command
from fastcifar.files import lock_folder
from fastcifar.observers.checkpoints import Checkpoints, Interrupted
from fastcifar.observers.run_files import Curves
from fastcifar.runs.checkpoint import load

pytestmark = pytest.mark.usefixtures("here")

# A run and its folder


def test_a_run_ends_with_its_summary(call, base, tmp_path, curves):
    code, out, err = call(*base, "--out", "r")
    assert (code, err) == (0, [])
    assert json.loads(out[-1]) == json.loads((tmp_path / "r/summary.json").read_text())
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "checkpoint.pt", "config.json", "curves.png", "metrics.jsonl", "model.safetensors", "summary.json",
    }  # fmt: skip
    assert (tmp_path / "r/curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_folder_is_named_after_the_run_and_never_used_twice(call, base, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcifar.runs.folder.utc_stamp", lambda: "20260131-235959")
    monkeypatch.setattr(command, "train", lambda *args: (_ for _ in ()).throw(Interrupted(signal.SIGTERM)))
    assert [call(*base)[0] for _ in range(2)] == [143, 143]
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"20260131-235959-swa30-s0", "20260131-235959-swa30-s0-2"}


def test_a_folder_that_holds_a_run_is_refused(call, base, tmp_path):
    assert call(*base, "--out", "r")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    code, _, err = call(*base, "--out", "r")
    assert code == 2 and len(err) == 1 and "holds a run already; continue it with --resume r" in err[0]
    assert {p: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before


@pytest.mark.parametrize("flags", [["--out", "r"], ["--resume", "r"]], ids=" ".join)
def test_a_run_stopped_before_its_first_checkpoint_begins_anew(call, base, tmp_path, monkeypatch, flags):
    out = "r"
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        patched.setattr(Checkpoints, "_save", lambda *args, **kwargs: None)
        assert call(*base, "--out", out)[0] == 143
    (tmp_path / out / ".checkpoint.pt.0123abcd.part").write_bytes(b"left by a kill")
    (tmp_path / out / ".mine.part").touch()
    code, _, err = call(*(base if flags[0] == "--out" else []), *flags)
    assert (code, err) == (0, []) and load(tmp_path / out / "checkpoint.pt")["state"]["step"] == 16
    assert [p.name for p in (tmp_path / out).glob(".*")] == [".mine.part"]


@pytest.mark.parametrize("flags", [["--data", "nowhere.npz"], ["--val-split", "0.999"]], ids=" ".join)
def test_a_start_that_fails_on_its_data_leaves_no_folder(call, base, tmp_path, flags):
    code, _, err = call(*base, *flags)
    assert code == 2 and len(err) == 1 and not list(tmp_path.iterdir())
    assert call(*base, *flags, "--out", "r")[0] == 2 and not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_refused_before_the_data_is_loaded(call, base, monkeypatch):
    assert call(*base, "--out", "r")[0] == 0
    monkeypatch.setattr(command, "load_of", lambda *args, **kwargs: 1 / 0)
    code, _, err = call(*base, "--out", "r")
    assert code == 2 and "holds a run already" in err[0]


def test_a_run_on_the_synthetic_images_says_so_where_its_figure_stands(call, base, tmp_path, monkeypatch, curves):
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text: titles.append(text))
    code, out, _ = call(*base, "--data", "synthetic", "--subset", "200", "--epochs", "1")
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0 and folder.name.endswith("-swa30-synthetic-s0")
    one_view = json.loads((folder / "summary.json").read_text())["accuracy_one_view"]
    assert f"; one view {one_view:.2%}, the figure takes up to 6)" in out[-3]
    assert out[-3].startswith("accuracy ") and out[-3].endswith("on the built-in synthetic images, not CIFAR-10")
    assert len(titles) == 1 and titles[0].endswith("built-in synthetic images")
    assert export.main([str(folder), "--format", "hub-folder"]) == 0
    assert "no figure here says anything about CIFAR-10" in (folder / "hub" / "README.md").read_text()


@pytest.mark.parametrize("out", ["x.txt", "x.txt/r", "/proc/r"])
def test_a_folder_that_cannot_be_made_is_told(call, base, tmp_path, out):
    (tmp_path / "x.txt").touch()
    code, _, err = call(*base, "--out", out)
    assert code == 2 and len(err) == 1 and out in err[0]


def test_two_processes_do_not_train_in_one_folder(call, base, tmp_path):
    (tmp_path / "r").mkdir()
    with lock_folder(tmp_path / "r"):
        code, _, err = call(*base, "--out", "r")
    assert code == 2 and len(err) == 1 and "r: another process trains in it" in err[0]
    assert not list((tmp_path / "r").iterdir())
    assert call(*base, "--out", "r")[0] == 0


def test_a_dry_run_writes_nothing(call, base, tmp_path):
    code, out, err = call(*base, "--dry-run")
    assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16
    assert not list(tmp_path.iterdir())


def test_the_figures_are_kept_where_the_picture_fails(call, base, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device", "r/curves.png")

    monkeypatch.setattr(Curves, "on_end", fail)
    code, _, err = call(*base, "--out", "r")
    assert code == 2 and "r/curves.png: No space left" in err[0]
    assert json.loads((tmp_path / "r/summary.json").read_text())["num_steps"] == 16


@pytest.mark.parametrize("flags", [[], ["--runs", "2"]], ids=["a run", "two seeds"])
def test_a_folder_that_is_removed_while_it_trains_is_an_error(call, base, tmp_path, monkeypatch, flags):
    first = []

    def remove(self, run, row):
        if not first:
            first.append(shutil.rmtree(tmp_path / "r"))

    monkeypatch.setattr(Checkpoints, "on_epoch", remove)
    code, _, err = call(*base, *flags, "--out", "r")
    assert code == 2 and len(err) == 1 and "r: was removed while the run trained" in err[0]
    assert (tmp_path / "r/summary.json").exists()  # hours of training are not thrown away


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
    monkeypatch.setattr(command, "banner", lambda task: 1 / 0)
    code, _, err = call(*base, "--out", "r")
    assert code == 1 and err[0].startswith("Traceback") and "ZeroDivisionError" in err[-1]


@pytest.mark.parametrize(
    ("word", "advice"),
    [("trian", "did you mean train?"), ("lrfind", "did you mean lr-find?"), ("--versoin", "did you mean --version?"),
     ("xyz", "see fastcifar --help"), ("a\x1b[2Jb", "see fastcifar --help")],
)  # fmt: skip
def test_a_command_that_does_not_exist(word, advice, capfd):
    assert fastcifar.main([word, "--epochs", "3"]) == 2
    word = word.replace("\x1b", "\\x1b")
    assert capfd.readouterr() == ("", f"error: fastcifar {word}: no such command; {advice}\n")


@pytest.mark.parametrize(("words", "code"), [([], 2), (["-h"], 0), (["--help"], 0)])
def test_help_says_what_each_command_does(words, code, capfd):
    assert fastcifar.main(words) == code
    said = capfd.readouterr()
    lines = (said.err if code else said.out).splitlines()
    assert lines[0].startswith("usage: fastcifar COMMAND") and not (said.out if code else said.err)
    told = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert list(told) == list(fastcifar.COMMANDS) and all(len(words) > 4 for words in told.values())
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["doctor", "--version"]], ids=" ".join)
def test_the_version_is_told(words, capfd):
    assert fastcifar.main(words) == 0
    assert capfd.readouterr() == (f"fastcifar {__version__}\n", "")


def test_train_fast_tells_the_version_without_torch():
    code = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_path('train_fast.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastcifar {__version__}\n", "")
