"""A run folder from a stranger: nothing in it is executed, written elsewhere or believed about CIFAR-10."""

import json
import os
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from commands import files, interrupted_run
from made_runs import NAMES, make_run, write_arrays
from torch._inductor.codecache import FxGraphCachePickler

import fastcifar
from fastcifar.cli import flags
from fastcifar.cli import main as cli
from fastcifar.config.command import Command
from fastcifar.config.config import Machine
from fastcifar.config.settings import COMMAND, SETTINGS, settings_by_flag
from fastcifar.data import download
from fastcifar.data.cache import write_cache
from fastcifar.data.dataset import Dataset, dataset_digest
from fastcifar.runs import checkpoint
from fastcifar.runs.config_file import config_from_plain, load_config
from fastcifar.runs.folder import resume_command
from fastcifar.training.compiling import COMPILE_CACHE, compile_cache_dir

pytestmark = pytest.mark.usefixtures("here")

NOTES = {"compile": "default", "cache_dir": "theirs", "out": "elsewhere", "log": "tensorboard", "profile": True,
         "plot_schedule": True, "dry_run": True, "json": True, "debug": True}  # fmt: skip
"""What a file cannot set, with values that are not the defaults."""


@pytest.fixture
def run(request):
    return interrupted_run(request)


class Planted:
    """Once unpickled, it leaves a file and ends the program."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close(); raise SystemExit('executed')",)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """(cache folder whose compiled code runs a stranger's when it is loaded, the file that this leaves)."""
    key = "planted"
    monkeypatch.setattr(FxGraphCachePickler, "get_key", lambda *_: key)  # the stranger knows our network
    theirs, mark = tmp_path / "theirs", tmp_path / "executed"
    for below in (f"aotautograd/{key}", f"fxgraph/{key[1:3]}/{key}"):
        (theirs / "compiled" / below).mkdir(parents=True)
        (theirs / "compiled" / below / "entry").write_bytes(pickle.dumps(Planted(mark)))
    monkeypatch.delenv(COMPILE_CACHE, raising=False)
    yield theirs, mark
    os.environ.pop(COMPILE_CACHE, None)
    torch._dynamo.reset()


def set_in_config(run, **settings):
    values = json.loads((run / "config.json").read_text())
    for name, value in settings.items():
        part, field = ("data", name) if name == "source" else (SETTINGS[name].part, SETTINGS[name].field.name)
        part = "run" if part == "command" else part  # where older versions wrote it
        values[part][field] = value
    (run / "config.json").write_text(json.dumps(values))


def test_what_lies_in_the_cache_of_the_config_is_not_executed(call, run, planted):
    theirs, mark = planted
    before = sorted(theirs.rglob("*"))
    set_in_config(run, cache_dir=str(theirs), compile="default")
    code, out, err = call("--resume", str(run))
    assert (code, err, mark.exists()) == (0, [], False)
    assert json.loads(out[-1])["num_steps"] == 16 and sorted(theirs.rglob("*")) == before


def test_no_folder_tracker_or_profile_comes_from_the_config(call, run, tmp_path):
    set_in_config(run, **NOTES)
    code, out, err = call("--resume", str(run))
    assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16
    assert not any((tmp_path / name).exists() for name in ("theirs", "elsewhere", "schedule.png"))
    assert not any(run.glob("log-*")) and not any(run.glob("profile*"))


def test_the_planted_cache_would_be_executed(planted, monkeypatch):
    """So that the test above can fail: torch does load what lies there."""
    theirs, mark = planted
    monkeypatch.setenv(COMPILE_CACHE, str(theirs / "compiled"))
    with pytest.raises(SystemExit, match="executed"):
        torch.compile(lambda x: x + 1)(torch.ones(3))
    assert mark.exists()


def test_a_flag_compiles_in_a_folder_of_the_user(run, planted, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "mine"))
    set_in_config(run, cache_dir=str(planted[0]))
    config, _ = flags.parse(["--resume", str(run), "--compile", "default"])
    assert config.machine.compile == "default" and compile_cache_dir(config) == tmp_path / "mine" / "compiled"


def test_every_setting_that_names_a_folder_a_program_or_a_tracker_is_a_note(run):
    """A new setting of such a kind belongs in the list above."""
    not_read = {name for name, where in SETTINGS.items() if not where.field.metadata.get("from_file", True)}
    assert not_read | {*COMMAND} == NOTES.keys() | {"resume", "config"}
    set_in_config(run, **NOTES, resume="theirs")
    noted = settings_by_flag(load_config(run / "config.json"))
    defaults = {f.name: f.default for f in fields(Machine)}
    assert {name: noted[name] for name in not_read} == {name: defaults[name] for name in not_read}
    assert not {*COMMAND} & noted.keys()


def test_a_note_that_makes_no_sense_is_still_an_error(call, run):
    set_in_config(run, compile="rm -rf")
    code, _, err = call("--resume", str(run))
    assert code == 2 and "compile is 'rm -rf'" in err[0]


def test_the_command_that_goes_on_names_what_the_file_does_not_give(run, tmp_path):
    saved = load_config(run / "config.json")
    assert resume_command(run, config=saved).endswith(f"--resume {run}")
    ours = replace(saved, machine=replace(saved.machine, compile="off", cache_dir="a b"))
    command = resume_command(run, config=ours, command=Command(log="wandb", profile=True, out=str(run)))
    assert command.endswith(f"--resume {run} --compile off --cache-dir 'a b' --log wandb --profile")


@pytest.mark.parametrize("name", ["evaluate", "ensemble", "compare", "export"])
def test_a_command_on_the_run_leaves_the_folders_of_its_config_alone(name, tmp_path, monkeypatch, capfd):
    """Nothing is read or written in the cache that it names, no folder is made."""
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "mine"))
    data = write_arrays(tmp_path / "ten.npz")
    runs = [make_run(tmp_path / f"r{i}", data, seed=i) for i in range(2)]
    for run in runs:
        set_in_config(run, cache_dir=str(tmp_path / "theirs" / "cache"), out=str(tmp_path / "theirs" / "out"))
    words = {"evaluate": [runs[0]], "ensemble": runs, "compare": [*runs, "--out", tmp_path / "c.png"],
             "export": [runs[0], "--format", "hub-folder"]}[name]  # fmt: skip
    before = {str(run): sorted(files(run)) for run in runs}
    assert cli.main([name, *map(str, words)]) == 0, capfd.readouterr().err
    assert not (tmp_path / "theirs").exists() and "theirs" not in capfd.readouterr().out
    if name == "export":
        assert "theirs" not in (runs[0] / "hub" / "config.json").read_text()
    assert sorted(files(runs[1])) == before[str(runs[1])]


def plant_cifar10(folder, run, name):
    """A cache file, whole by its own checksum, of images for which the run's model is always right."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    labels = fastcifar.load(run).logits(images).argmax(1).numpy()
    arrays = images, labels, images, labels
    fake = Dataset(name, NAMES, *arrays, (0.5,) * 3, (0.25,) * 3, dataset_digest(NAMES, arrays))
    with (folder / f"{name}-v2.cache").open("wb") as file:
        write_cache(file, fake)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("where", ["theirs", "mine"])
def test_no_figure_on_cifar_from_other_images(name, where, tmp_path, monkeypatch, capfd):
    """Neither in the cache that the run names, nor in the user's own."""
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "mine"))
    monkeypatch.setattr(download, "_check_server_answers", no_network)
    run = make_run(tmp_path / "r", write_arrays(tmp_path / "ten.npz"))
    set_in_config(run, cache_dir=str(tmp_path / "theirs"), source=name)
    plant_cifar10(tmp_path / where, run, name)
    before = files(run)
    code = cli.main(["evaluate", str(run)])
    out, err = capfd.readouterr()
    assert code == 2 and out == "" and files(run) == before, (out, err)
    *warnings, last = err.splitlines()
    assert "was not found and cannot be downloaded (no network)" in last and (tmp_path / "theirs").exists() is (
        where == "theirs"
    )
    assert len(warnings) == (where == "mine") and all("its images are not known to be those" in w for w in warnings)


def no_network(url):
    raise OSError("no network")


def test_a_checkpoint_gives_no_folder_either(run):
    plain = checkpoint.load(run / "checkpoint.pt")["config"]
    assert plain["machine"]["cache_dir"] and plain["machine"]["compile"] == "off"
    read = config_from_plain(plain, "checkpoint.pt")
    assert (read.machine.cache_dir, read.machine.compile) == (None, "auto")
