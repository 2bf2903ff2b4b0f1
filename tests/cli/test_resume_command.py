"""--resume on the command line: what goes on, what is refused, and the command that is printed."""

import json
import shlex
import shutil
import signal

import processes
import pytest
import torch
from commands import interrupted_run, stop_at

from fastcifar.runs.folder import resume_command

pytestmark = pytest.mark.usefixtures("here")


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


OLDER = {"out": "elsewhere", "resume": "runs/before", "log": "tensorboard", "profile": True, "plot_schedule": True,
         "dry_run": True, "debug": True}  # fmt: skip
"""What older versions wrote among the settings of the run, in config.json and in the checkpoint."""


def in_the_older_form(run):
    """Rewrites the files of an interrupted run as an older version wrote them."""
    plain = json.loads((run / "config.json").read_text())
    assert not plain["run"].keys() & OLDER.keys()
    plain["run"] |= OLDER
    (run / "config.json").write_text(json.dumps(plain))
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    content["config"]["run"] |= OLDER
    torch.save(content, run / "checkpoint.pt")


def test_a_run_of_an_older_version_goes_on(call, request, tmp_path):
    run, before = interrupted_run(request), {path.name for path in tmp_path.iterdir()}
    shutil.copytree(run, tmp_path / "older")
    in_the_older_form(tmp_path / "older")
    for name in ("r", "older"):
        code, out, err = call("--resume", name)
        assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16
    assert (tmp_path / "older/model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == before | {"older"} and not [*tmp_path.glob("older/log-*")]


def test_what_changes_the_training_is_refused(call, base):
    assert call(*base, "--out", "r")[0] == 0
    for flags, told in ((["--seed", "7"], "seed: 0 -> 7"), (["--lr-peak", "0.5"], "lr_peak: 0.12 -> 0.5"),
                        (["--schedule", "cosine"], "schedule: onecycle -> cosine")):  # fmt: skip
        code, _, err = call("--resume", "r", *flags)
        assert code == 2 and len(err) == 1 and told in err[0]


@pytest.mark.parametrize(
    "flags",
    [["--eval-every", "2"], ["--no-deterministic"], ["--tta", "none"], ["--target", "0.5"],
     ["--checkpoint-every", "0"]],
    ids=" ".join,
)  # fmt: skip
def test_what_does_not_decide_the_weights_may_change(call, base, monkeypatch, flags):
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        assert call(*base, "--out", "r")[0] == 143
    code, out, err = call("--resume", "r", *flags)
    assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16


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
    assert said == "interrupted and saved; continue with"
    python, program, *flags = shlex.split(command)
    assert program == "train_fast.py" and "python" in python and flags[:2] == ["--resume", "it's a run"]
    assert call(*flags)[0] == 0


def test_the_command_names_what_was_started(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["some where/train_fast.py"])
    monkeypatch.setattr("sys.executable", "/opt/py/bin/python3")
    assert resume_command(tmp_path) == f"/opt/py/bin/python3 'some where/train_fast.py' --resume {tmp_path}"
    assert resume_command(tmp_path, 4).startswith("torchrun --nproc-per-node=4 'some where/train_fast.py' --resume")


@pytest.mark.parametrize("script", ["/opt/py/bin/fastcifar", "/lib/fastcifar/__main__.py", "/opt/notebook.py", "-c"])
def test_the_command_is_the_packages_where_no_script_of_ours_was_started(monkeypatch, tmp_path, script):
    monkeypatch.setattr("sys.argv", [script])
    monkeypatch.setattr("sys.executable", "/opt/py/bin/python3")
    assert resume_command(tmp_path) == f"/opt/py/bin/python3 -m fastcifar train --resume {tmp_path}"
    assert resume_command(tmp_path, 2) == f"torchrun --nproc-per-node=2 -m fastcifar train --resume {tmp_path}"


def test_an_extension_is_the_number_of_epochs_in_all(call, base):
    assert call(*base, "--out", "r")[0] == 0
    code, _, err = call("--resume", "r", "--extend-epochs", "1")
    assert code == 2 and "--extend-epochs 1: r has 2 epochs by now; give the larger number" in err[0]
    assert call("--resume", "r", "--extend-epochs", "3")[0] == 0
    assert call("--resume", "r")[0] == 0


def test_a_start_that_is_refused_changes_nothing(call, base, request, tmp_path):
    """Neither other images nor fewer seeds than there are."""
    run = interrupted_run(request)
    before = (run / "config.json").read_bytes()
    images = processes.write_images(tmp_path / "y.npz", n_train=150)
    assert call("--resume", str(run), "--data", str(images))[0] == 2
    assert (run / "config.json").read_bytes() == before and call("--resume", str(run))[0] == 0
