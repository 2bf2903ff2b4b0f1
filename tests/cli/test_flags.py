"""The command line is the fields of Config; whatever is wrong with it is said in one line."""

import json
import os
from pathlib import Path

import pytest

from fastcifar.cli import flags
from fastcifar.cli.flags import SMOKE_IMAGES, UsageError
from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.config.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.config.schedules import MultiStep
from fastcifar.config.settings import NAMES, with_optimizer, with_settings
from fastcifar.runs.config_file import ConfigFileError, config_to_plain

DEFAULT = RECIPES[DEFAULT_RECIPE]


def parse(words, **more):
    """The Config of the flags."""
    return flags.parse(words, **more)[0]


def test_no_flags_is_the_default_recipe():
    assert parse([]) == DEFAULT and DEFAULT.run.recipe == "swa30" and DEFAULT.epochs == 30


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_defaults_of_all_other_flags(name):
    assert parse(["--recipe", name]) == RECIPES[name]
    assert parse([f"--recipe={name}", "--seed", "3"]) == with_settings(RECIPES[name], seed=3)
    assert parse(["--seed", "3", "--recipe", name]) == with_settings(RECIPES[name], seed=3)


def test_an_optimizer_brings_the_rates_that_suit_it():
    config = parse(["--optimizer", "sgd", "--momentum-max", "0.9"])
    assert config == with_settings(with_optimizer(DEFAULT, "sgd"), momentum_max=0.9)
    assert config.optimizer.bias_lr_scale == 1.0 and config.schedule.peak > DEFAULT.schedule.peak
    assert parse(["--optimizer", "muon"]) == DEFAULT


def test_of_a_flag_that_is_given_twice_the_last_counts():
    assert parse(["--recipe", "swa30", "--recipe=onecycle30"]) == RECIPES["onecycle30"]
    assert parse(["--optimizer", "sgd", "--optimizer", "muon"]) == DEFAULT


def test_help_shows_every_flag_and_ends_well(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"], prog="train_fast.py", description="What it does.")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "train_fast.py" in shown and "What it does." in shown
    flags = {word.strip(",") for word in shown.split() if word.startswith("--")}
    assert all(name in shown for name in RECIPES)
    missing = {f"--{name.replace('_', '-')}" for name in NAMES} - flags
    assert not missing


@pytest.mark.parametrize(
    ("words", "knobs"),
    [
        ("--epochs 12", {"epochs": 12.0}),
        ("--epochs=2.5", {"epochs": 2.5}),
        ("--batch-size 250", {"batch_size": 250}),
        ("--schedule multistep --milestones 0.2 0.4", {"schedule": "multistep", "milestones": (0.2, 0.4)}),
        ("--schedule multistep --milestones 10 20 25 --gamma 0.5",
         {"schedule": "multistep", "milestones": (10.0, 20.0, 25.0), "gamma": 0.5}),
        ("--swa-start None", {"swa_start": None}),
        ("--swa-start 20", {"swa_start": 20.0}),
        ("--swa-every 5 --swa-momentum 0.5", {"swa_every": 5, "swa_momentum": 0.5}),
        ("--final-div-factor 1e4", {"final_div_factor": 1e4}),
        ("--lr-peak 5e-2 --pct-start 0.1", {"lr_peak": 0.05, "pct_start": 0.1}),
        ("--deterministic --no-cycle-momentum", {"deterministic": True, "cycle_momentum": False}),
        ("--schedule plateau --val-split 0.1", {"schedule": "plateau", "val_split": 0.1}),
        ("--target 0.94 --runs 10", {"target": 0.94, "runs": 10}),
        ("--data /tmp/a-b", {"data": "/tmp/a-b"}),
        ("--scale small --precision bf16 --compile off --augment torch",
         {"scale": "small", "precision": "bf16", "compile": "off", "augment": "torch"}),
    ],
)  # fmt: skip
def test_flags_set_fields(words, knobs):
    assert parse(words.split()) == with_settings(DEFAULT, **knobs)


def test_epochs_keeps_the_proportions():
    config = parse(["--epochs", "12"])
    assert config.tail and config.epoch_of(config.tail.start) == pytest.approx(8)
    config = parse(["--epochs", "12", "--schedule", "multistep"])
    assert isinstance(config.schedule, MultiStep)
    assert [config.epoch_of(m) for m in config.schedule.milestones] == pytest.approx([6, 9.6])


def test_smoke_is_an_epoch_on_few_images():
    config = parse(["--smoke"])
    assert (config.run.smoke, config.epochs, config.data.subset) == (True, 1.0, SMOKE_IMAGES)
    assert parse(["--smoke", "--subset", "300"]).data.subset == 300


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--target 94", "target is 94.0; it must be a fraction, such as 0.94"),
        ("--epochs 0", "epochs is 0.0; it must be above 0 and at most 100,000"),
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
        ("--schedule multistep --milestones 0.8 0.2", "milestones"),
        ("--milestones x", "--milestones"),
        (
            "--scale huge",
            "invalid choice 'huge' for argument '--scale'. Expected one of ('auto', 'full', 'small', 'wide')",
        ),
        ("--optimizer adam", "--optimizer"),
        ("--schedule plateau", "add --val-split 0.1"),
        ("--recipe nope", f"recipe 'nope' is unknown; known: {', '.join(RECIPES)}"),
        ("--recipe=nope", "recipe 'nope' is unknown"),
        ("--recipe", f"--recipe: expected a name; known: {', '.join(RECIPES)}"),
        ("--epoch 3", "--epoch"),
        ("--learning-rate 3", "--learning-rate"),
        ("train", "train"),
        ("--extend-epochs 40", "add --resume"),
        ("--resume nowhere", "--resume nowhere: there is no checkpoint.pt in it"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(words, told):
    with pytest.raises(ValueError) as error:
        parse(words.split())
    message = str(error.value)
    assert told in message
    assert "\n" not in message and not set("│╭╰─") & set(message) and "  " not in message


def test_a_wrong_flag_prints_nothing_itself(capsys):
    with pytest.raises(UsageError):
        parse(["--epochs", "many"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--gamma 0.5", "--gamma has no effect with schedule onecycle: it belongs to multistep and step"),
        ("--gamma=0.1", "--gamma has no effect"),  # also where it repeats the default
        ("--schedule cosine --pct-start 0.3", "it belongs to onecycle"),
        ("--schedule cyclic --cyclic-gamma 0.99", "it belongs to --cyclic-mode exp_range"),
        ("--no-cycle-momentum --momentum-min 0.5", "it belongs to a schedule that cycles the momentum"),
        ("--schedule cosine --no-cycle-momentum", "it belongs to onecycle and cyclic"),
        ("--optimizer sgd --momentum 0.5", "it belongs to --optimizer muon, or a schedule that does not cycle"),
        ("--swa-start None --swa-lr 0.1", "it belongs to an averaging tail (--swa-start)"),
        ("--recipe cosine50 --swa-every 5", "it belongs to an averaging tail (--swa-start)"),
        ("--tta none --tta-share 0.5", "it belongs to test-time views"),
        ("--low-res-until 0 --low-res-px 20", "it belongs to a low-resolution part"),
    ],
)
def test_a_flag_without_effect_is_refused_and_told_where_it_belongs(words, told):
    with pytest.raises(ValueError) as error:
        parse(words.split())
    assert told in str(error.value) and "has no effect" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    ["--momentum 0.5", "--schedule cosine --optimizer sgd --momentum 0.5", "--schedule cyclic --momentum-min 0.5",
     "--schedule cyclic --cyclic-mode exp_range --cyclic-gamma 0.99", "--low-res-px 32", "--low-res-until 0",
     "--recipe cosine50 --swa-start 0.5 --swa-lr 0.02", "--swa-start None"],
)  # fmt: skip
def test_a_flag_with_an_effect_is_taken(words):
    parse(words.split())


# --resume

PLAIN_FORM = config_to_plain(DEFAULT)


def make_run(folder: Path, config: Config = DEFAULT, age_s: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_to_plain(config)))
    (folder / "checkpoint.pt").touch()
    now = (folder / "checkpoint.pt").stat().st_mtime
    os.utime(folder / "checkpoint.pt", (now - age_s, now - age_s))
    return folder


def test_resume_takes_the_settings_of_the_run(tmp_path):
    config = with_settings(DEFAULT, epochs=7, seed=5, schedule="multistep", milestones=(0.25, 0.5), swa_start=None)
    folder = make_run(tmp_path / "a", config)
    assert flags.parse(["--resume", str(folder)]) == (config, Command(resume=str(folder)))
    assert parse([f"--resume={folder}"]).seed == 5


def test_resume_takes_flags_that_do_not_change_the_training(tmp_path):
    folder = make_run(tmp_path / "a", with_settings(DEFAULT, seed=5))
    config = parse(["--resume", str(folder), "--extend-epochs", "40", "--tta", "none"])
    assert (config.run.extend_epochs, config.evaluation.tta, config.seed) == (40.0, "none", 5)


def test_resume_refuses_what_would_change_the_training(tmp_path):
    folder = make_run(tmp_path / "a", with_settings(DEFAULT, lr_peak=0.5))
    with pytest.raises(UsageError, match=r"lr_peak: 0\.5 -> 0\.25; leave them out"):
        parse(["--resume", str(folder), "--lr-peak", "0.25"])


def test_resume_auto_is_the_newest_unfinished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no unfinished run"):
        parse(["--resume", "auto"])
    make_run(tmp_path / "runs/old", with_settings(DEFAULT, seed=1), age_s=200)
    make_run(tmp_path / "runs/new", with_settings(DEFAULT, seed=2), age_s=100)
    (make_run(tmp_path / "runs/done", with_settings(DEFAULT, seed=3)) / "summary.json").touch()
    (make_run(tmp_path / "runs/failed", with_settings(DEFAULT, seed=4)) / "checkpoint.pt").unlink()
    assert parse(["--resume", "auto"]).seed == 2
    job = make_run(tmp_path / "runs/job", with_settings(DEFAULT, seed=5, runs=2))
    (job / "checkpoint.pt").rename(job / "runs.jsonl")
    assert parse(["--resume", "auto"]).seed == 5


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("{", ConfigFileError, "cannot be read"),
        ("[1]", ConfigFileError, "no table of names and values"),
        (json.dumps({**PLAIN_FORM, "epochs": -1}), ConfigFileError, "epochs is -1"),
        (json.dumps({**PLAIN_FORM, "epochs": "3"}), ConfigFileError, "epochs is '3'"),
        ('{"warp": 9}', ConfigFileError, "unknown setting 'warp'"),
    ],
)
def test_damaged_settings_of_a_run_are_told_in_one_line(tmp_path, text, error, told):
    folder = make_run(tmp_path / "a")
    (folder / "config.json").write_text(text)
    with pytest.raises(error) as raised:
        parse(["--resume", str(folder)])
    assert told in str(raised.value) and "config.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_run_without_settings_is_told(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigFileError, match=r"config\.json: cannot be read"):
        parse(["--resume", str(folder)])
