"""--config: the settings of a file are the defaults, flags go before them, and nothing else comes from the file."""

import json
from dataclasses import replace

import pytest
from commands import interrupted_run
from made_runs import make_run, write_arrays

from fastcifar.cli import flags
from fastcifar.cli.flags import UsageError
from fastcifar.config.command import Command
from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import COMMAND, NAMES, SETTINGS, with_optimizer, with_settings
from fastcifar.runs.config_file import MAX_BYTES, ConfigFileError, config_to_plain, load_config, load_defaults
from fastcifar.runs.record import write_json

SWA30 = RECIPES["swa30"]
WORDS = "--optimizer sgd --swa-start None --seed 3"


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_a_run_are_the_defaults_and_flags_go_before_them(name, tmp_path):
    config = with_settings(RECIPES[name], epochs=7, seed=5, target=0.94)
    write_json(tmp_path / "config.json", config_to_plain(config))
    words = ["--config", str(tmp_path / "config.json")]
    assert flags.parse(words) == (config, Command(config=words[1]))
    assert flags.parse(["--epochs", "10", *words])[0] == replace(config, epochs=10.0)
    assert flags.parse([f"--config={words[1]}", "--lr-peak", "0.5"])[0] == with_settings(config, lr_peak=0.5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", {"recipe": "onecycle30", "epochs": 4, "lr_peak": 0.2, "low-res-px": [24], "low-res-until": [0.5]}),
        ("a.toml", 'recipe = "onecycle30"\nepochs = 4\nlr-peak = 0.2\nlow_res_px = [24]\nlow_res_until = [0.5]'),
    ],
)
def test_settings_by_flag_change_a_recipe(name, text, tmp_path):
    file = write(tmp_path / name, text)
    expected = with_settings(RECIPES["onecycle30"], epochs=4, lr_peak=0.2, low_res_px=(24,), low_res_until=(0.5,))
    assert flags.parse(["--config", file])[0] == expected
    assert flags.parse(["--config", file, "--lr-peak", "0.3"])[0] == with_settings(expected, lr_peak=0.3)


def test_another_optimizer_leaves_the_rates_of_the_file(tmp_path):
    file = write(tmp_path / "a.toml", "lr_peak = 0.05")
    expected = with_settings(with_optimizer(SWA30, "sgd"), lr_peak=0.05)
    assert flags.parse(["--config", file, "--optimizer", "sgd"])[0] == expected


def test_settings_by_flag_have_the_rules_of_flags(tmp_path):
    """The default recipe, rates that suit the optimizer, None for no tail, a smoke run."""
    file = write(tmp_path / "a.json", {"optimizer": "sgd", "swa_start": None, "seed": 3})
    expected = with_settings(with_optimizer(SWA30, "sgd"), swa_start=None, seed=3)
    assert load_defaults(tmp_path / "a.json") == flags.parse(["--config", file])[0] == expected
    assert flags.parse(["--config", file])[0] == flags.parse(WORDS.split())[0]
    assert flags.parse(["--config", write(tmp_path / "b.json", {"smoke": True})])[0].epochs == 1


BARRED = [name for name, where in SETTINGS.items() if not where.field.metadata.get("from_file", True)]


@pytest.mark.parametrize("name", [*BARRED, *COMMAND])
def test_no_folder_program_or_command_comes_from_settings_by_flag(name, tmp_path):
    file = write(tmp_path / "a.json", {name: "theirs"})
    with pytest.raises(ConfigFileError, match=f"^{file}: {name} is not taken from a file; give it as a flag$"):
        flags.parse(["--config", file])


def test_no_folder_or_program_comes_from_a_config_json(tmp_path):
    plain = config_to_plain(SWA30)
    plain["machine"] |= {"cache_dir": "theirs", "compile": "default"}
    plain["run"] |= {"out": "elsewhere", "log": "wandb", "profile": True, "extend_epochs": 40}
    config, command = flags.parse(["--config", file := write(tmp_path / "config.json", plain)])
    assert (config, command) == (SWA30, Command(config=file))
    assert flags.parse(["--config", file, "--cache-dir", "mine"])[0].machine.cache_dir == "mine"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", "{", "cannot be read (Expecting property name"),
        ("a.toml", "epochs 3", "cannot be read (Expected '='"),
        ("a.yaml", "epochs: 3", "give the config.json of a run, or settings by flag as JSON or .toml"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", '{"epochs": 3}' + " " * MAX_BYTES, f"it has more than {MAX_BYTES} bytes"),
        ("a.json", [1], "the file is no table"),
        ("a.json", {"warp\n\x1b[2J": 9}, r"unknown setting 'warp\n\x1b[2J'"),
        ("a.json", {"epochs": -1}, "epochs is -1"),
        ("a.json", {"epochs": "3"}, "epochs is '3'"),
        ("a.json", {"epochs": True}, "epochs is True"),
        ("a.json", {"recipe": "nope"}, "recipe 'nope' is unknown"),
        ("a.json", {"recipe": {}}, "a.json"),
        ("a.json", {"optimizer": "adam"}, "optimizer is 'adam'; known: sgd"),
        ("a.json", {"optimizer": {"name": "sgd"}}, "known: sgd"),
        ("a.json", {"gamma": 0.5}, "--gamma has no effect with schedule onecycle"),
        ("a.toml", "epochs = 1979-05-27", "epochs is"),
        ("a.toml", "lr_peak = inf", "lr_peak is inf"),
        ("a.json", {**config_to_plain(SWA30), "epochs": -1}, "epochs is -1"),
        ("a.json", {**config_to_plain(SWA30), "warp": 9}, "unknown setting 'warp'"),
        ("a.json", {"schedule": {"name": "per-epoch"}}, "is a function from Python"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(name, text, told, tmp_path):
    file = write(tmp_path / name, text)
    with pytest.raises(ConfigFileError) as error:
        flags.parse(["--config", file])
    assert told in str(error.value) and str(error.value).startswith(f"{file}: ") and str(error.value).isprintable()


def test_a_file_that_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigFileError, match="cannot be read"):
            flags.parse(["--config", str(path)])


@pytest.mark.parametrize("words", ["--recipe swa30", "--resume runs/a", "--resume=auto"])
def test_not_together_with_a_recipe_or_a_run_that_goes_on(words, tmp_path):
    with pytest.raises(UsageError, match=r"^--config x: its settings take the place of --recipe and --resume; leave"):
        flags.parse([*words.split(), "--config", "x"])


def test_a_flag_of_every_setting_is_known_to_a_file(tmp_path):
    """Each is taken, or refused for its value or for where it belongs: none is unknown."""
    for name in NAMES:
        with pytest.raises(ConfigFileError) as error:
            load_defaults(tmp_path / write(tmp_path / "a.json", {name: ["x"]}))
        assert "unknown setting" not in str(error.value) and name in str(error.value).replace("-", "_")


def test_lr_find_takes_it_too(tmp_path):
    file = write(tmp_path / "a.json", {"seed": 3})
    assert flags.parse_config(["--config", file], "fastcifar lr-find").seed == 3
    with pytest.raises(UsageError, match="--out has no effect here"):
        flags.parse_config(["--config", file, "--out", "x"], "fastcifar lr-find")


@pytest.mark.usefixtures("here")
def test_a_run_from_the_config_of_another_is_its_twin(call, request, tmp_path):
    """The same settings in a folder of its own; it goes on with --resume alone."""
    first = interrupted_run(request)
    code, out, err = call("--config", str(first / "config.json"), "--out", "twin")
    assert (code, err) == (0, []) and json.loads(out[-1])["num_steps"] == 16
    assert load_config(tmp_path / "twin/config.json") == load_config(first / "config.json")
    code, out, err = call("--config", str(write_arrays(tmp_path / "x.npz")))
    assert code == 2 and len(err) == 1 and "cannot be read" in err[0]


@pytest.mark.usefixtures("here")
def test_the_command_that_goes_on_leaves_the_file_out(tmp_path):
    from fastcifar.runs.folder import resume_command

    run = make_run(tmp_path / "r", write_arrays(tmp_path / "ten.npz"))
    assert resume_command(run, command=Command(config="a.json", out="r")).endswith(f"--resume {run}")
