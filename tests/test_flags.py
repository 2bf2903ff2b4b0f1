"""The command line is the fields of Config; whatever is wrong with it is said in one line."""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from fastcifar.checkpoint import CheckpointError
from fastcifar.config import Config
from fastcifar.flags import SMOKE_IMAGES, UsageError, parse
from fastcifar.recipes import RECIPES, with_optimizer

DEFAULT = RECIPES[Config().recipe]


def test_no_flags_is_the_default_recipe():
    assert parse([]) == DEFAULT and DEFAULT.recipe == "swa30" and DEFAULT.epochs == 30


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_defaults_of_all_other_flags(name):
    assert parse(["--recipe", name]) == RECIPES[name]
    assert parse([f"--recipe={name}", "--seed", "3"]) == replace(RECIPES[name], seed=3)
    assert parse(["--seed", "3", "--recipe", name]) == replace(RECIPES[name], seed=3)


def test_an_optimizer_brings_the_rates_that_suit_it():
    config = parse(["--optimizer", "sgd", "--momentum-max", "0.9"])
    assert config == replace(with_optimizer(DEFAULT, "sgd"), momentum_max=0.9)
    assert config.bias_lr_scale == 1.0 and config.lr_peak > DEFAULT.lr_peak
    assert parse(["--optimizer", "muon"]) == DEFAULT


def test_help_shows_every_flag_and_ends_well(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"], prog="train_fast.py", description="What it does.")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "train_fast.py" in shown and "What it does." in shown
    flags = {word.strip(",") for word in shown.split() if word.startswith("--")}
    missing = {f"--{f.name.replace('_', '-')}" for f in fields(Config)} - flags
    assert not missing


@pytest.mark.parametrize(
    ("words", "knobs"),
    [
        ("--epochs 12", {"epochs": 12.0}),
        ("--epochs=2.5", {"epochs": 2.5}),
        ("--batch-size 250", {"batch_size": 250}),
        ("--milestones 0.2 0.4", {"milestones": (0.2, 0.4)}),
        ("--milestones 10 20 25 --gamma 0.5", {"milestones": (10.0, 20.0, 25.0), "gamma": 0.5}),
        ("--swa-start None", {"swa_start": None}),
        ("--swa-start 20", {"swa_start": 20.0}),
        ("--swa-every 5 --swa-momentum 0.5", {"swa_every": 5, "swa_momentum": 0.5}),
        ("--final-div-factor 1e4", {"final_div_factor": 1e4}),
        ("--lr-peak 5e-2 --pct-start 0.1", {"lr_peak": 0.05, "pct_start": 0.1}),
        ("--deterministic --no-cycle-momentum", {"deterministic": True, "cycle_momentum": False}),
        ("--schedule plateau --val-split 0.1", {"schedule": "plateau", "val_split": 0.1}),
        ("--target 0.94 --runs 10", {"target": 0.94, "runs": 10}),
        ("--data /tmp/a-b --out x", {"data": "/tmp/a-b", "out": "x"}),
        ("--scale small --precision bf16 --compile off --augment torch",
         {"scale": "small", "precision": "bf16", "compile": "off", "augment": "torch"}),
    ],
)  # fmt: skip
def test_flags_set_fields(words, knobs):
    assert parse(words.split()) == replace(DEFAULT, **knobs)


def test_epochs_keeps_the_proportions():
    config = parse(["--epochs", "12"])
    assert config.swa_start is not None and config.at(config.swa_start) == pytest.approx(8)
    assert [config.at(m) for m in config.milestones] == pytest.approx([6, 9.6])


def test_smoke_is_an_epoch_on_few_images():
    config = parse(["--smoke"])
    assert (config.smoke, config.epochs, config.subset) == (True, 1.0, SMOKE_IMAGES)
    assert parse(["--smoke", "--subset", "300"]).subset == 300


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--target 94", "target is 94.0; give the accuracy as a fraction, such as 0.94"),
        ("--epochs 0", "epochs is 0.0; it must be above 0"),
        ("--epochs nan", "epochs is nan; it must be finite"),
        ("--epochs many", "--epochs: could not convert string to float: 'many'"),
        ("--epochs", "--epochs"),
        ("--batch-size 2.5", "--batch-size"),
        ("--batch-size -5", "batch_size is -5; it must be above 0"),
        ("--subset 0", "subset is 0; it must be above 0"),
        ("--lr-peak -1", "lr_peak is -1.0; it must be at least 0"),
        ("--lr-peak inf", "lr_peak is inf; it must be finite"),
        ("--swa-start -0.1", "swa_start is -0.1"),
        ("--swa-start 40", "swa_start is epoch 40 but the run has 30 epochs"),
        ("--swa-start never", "--swa-start"),
        ("--milestones 0.8 0.2", "milestones"),
        ("--milestones x", "--milestones"),
        (
            "--scale huge",
            "invalid choice 'huge' for argument '--scale'. Expected one of ('auto', 'full', 'small', 'wide')",
        ),
        ("--optimizer adam", "--optimizer"),
        ("--schedule plateau", "add --val-split 0.1"),
        ("--recipe nope", f"recipe 'nope' is unknown; known: {', '.join(RECIPES)}"),
        ("--recipe=nope", "recipe 'nope' is unknown"),
        ("--epoch 3", "--epoch"),
        ("--learning-rate 3", "--learning-rate"),
        ("train", "train"),
        ("--extend-epochs 40", "add --resume"),
        ("--resume nowhere", "--resume nowhere: there is no checkpoint.pt in it"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(words, told):
    with pytest.raises(UsageError) as error:
        parse(words.split())
    message = str(error.value)
    assert told in message
    assert "\n" not in message and not set("│╭╰─") & set(message) and "  " not in message


def test_a_wrong_flag_prints_nothing_itself(capsys):
    with pytest.raises(UsageError):
        parse(["--epochs", "many"])
    assert capsys.readouterr() == ("", "")


# --resume


def make_run(folder: Path, config: Config, age_s: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    (folder / "checkpoint.pt").touch()
    now = (folder / "checkpoint.pt").stat().st_mtime
    os.utime(folder / "checkpoint.pt", (now - age_s, now - age_s))
    return folder


def test_resume_takes_the_settings_of_the_run(tmp_path):
    config = Config(epochs=7, seed=5, milestones=(0.25, 0.5), swa_start=None, out="elsewhere")
    folder = make_run(tmp_path / "a", config)
    assert parse(["--resume", str(folder)]) == replace(config, resume=str(folder), out=None)
    assert parse([f"--resume={folder}"]).seed == 5


def test_resume_takes_flags_that_do_not_change_the_training(tmp_path):
    folder = make_run(tmp_path / "a", Config(seed=5))
    config = parse(["--resume", str(folder), "--extend-epochs", "40", "--tta", "none"])
    assert (config.extend_epochs, config.tta, config.seed) == (40.0, "none", 5)


def test_resume_refuses_what_would_change_the_training(tmp_path):
    folder = make_run(tmp_path / "a", Config(lr_peak=0.5))
    with pytest.raises(UsageError, match=r"lr_peak: 0\.5 -> 0\.25; leave them out"):
        parse(["--resume", str(folder), "--lr-peak", "0.25"])


def test_resume_auto_is_the_newest_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no unfinished run"):
        parse(["--resume", "auto"])
    make_run(tmp_path / "runs/old", Config(seed=1), age_s=200)
    make_run(tmp_path / "runs/new", Config(seed=2), age_s=100)
    (make_run(tmp_path / "runs/done", Config(seed=3)) / "summary.json").touch()
    assert parse(["--resume", "auto"]).seed == 2


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("{", UsageError, "cannot be read"),
        ("[1]", CheckpointError, "no table of names and values"),
        ('{"epochs": -1}', CheckpointError, "epochs is -1"),
        ('{"epochs": "3"}', CheckpointError, "epochs is '3'"),
        ('{"warp": 9}', CheckpointError, "unknown setting 'warp'"),
    ],
)
def test_damaged_settings_of_a_run_are_told_in_one_line(tmp_path, text, error, told):
    folder = make_run(tmp_path / "a", Config())
    (folder / "config.json").write_text(text)
    with pytest.raises(error) as raised:
        parse(["--resume", str(folder)])
    assert told in str(raised.value) and "config.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_run_without_settings_is_told(tmp_path):
    folder = make_run(tmp_path / "a", Config())
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"config\.json: cannot be read"):
        parse(["--resume", str(folder)])
