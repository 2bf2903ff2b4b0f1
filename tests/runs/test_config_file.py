"""config.json: a config in plain containers, and the same config back."""

import json
from dataclasses import replace

import pytest
from conftest import PLAIN, make_config

from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedules import SCHEDULES, PerEpoch, PerStep
from fastcifar.runs import config_file
from fastcifar.runs.config_file import ConfigFileError, config_from_plain, config_to_plain, load_config
from fastcifar.runs.record import write_json

OTHERS = {
    "without a tail": {"swa_start": None},
    "milestones": {"schedule": "multistep", "milestones": (0.25, 0.75), "target": 0.94},
    "every kind of value": {"runs": 3, "seed": 2**40, "subset": 500, "tta": "flip", "tta_share": 0.5,
                            "deterministic": True, "cuda_graph": False, "checkpoint_every": 0},
    "plateau": {"schedule": "plateau", "val_split": 0.1},
}  # fmt: skip


def through_json(config):
    return config_from_plain(json.loads(json.dumps(config_to_plain(config), allow_nan=False)), "here")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_from_json(name):
    assert through_json(RECIPES[name]) == RECIPES[name]


@pytest.mark.parametrize("name", OTHERS)
def test_other_configs_come_back_from_json(name):
    assert through_json(make_config(**OTHERS[name])) == make_config(**OTHERS[name])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_comes_back_from_json(name):
    schedule = SCHEDULES[name](peak=0.3)
    config = replace(make_config(val_split=0.1), schedule=schedule)
    assert type(through_json(config).schedule) is type(schedule) and through_json(config) == config


def test_config_json_makes_the_config_again(tmp_path):
    config = make_config(schedule="multistep", milestones=(0.25, 0.75), target=0.94)
    write_json(tmp_path / "config.json", config_to_plain(config))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config_to_plain(config)))
    assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("kind", [PerStep, PerEpoch])
def test_a_schedule_of_ones_own_is_written_by_name_without_its_function(kind):
    plain = config_to_plain(replace(PLAIN, schedule=kind(peak=0.3, factor=lambda at: 0.5**at)))
    assert plain["schedule"] == {"name": kind.name, "peak": 0.3}
    with pytest.raises(ConfigFileError, match=rf"here: .*{kind.name}"):
        config_from_plain(json.loads(json.dumps(plain)), "here")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigFileError, match=r"config\.json: cannot be read"):
        load_config(tmp_path / "config.json")


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    """The same settings, with blanks up to the limit, and one more."""
    path, text = tmp_path / "config.json", json.dumps(config_to_plain(PLAIN))
    path.write_text(text.ljust(config_file.MAX_BYTES))
    assert load_config(path) == PLAIN
    path.write_text(text.ljust(config_file.MAX_BYTES + 1))
    with pytest.raises(ConfigFileError, match="it has more than 1048576 bytes"):
        load_config(path)
