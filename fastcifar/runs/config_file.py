"""config.json of a run folder: a Config as plain containers, and back with every value checked; the file of --config.

The same plain form stands in a checkpoint and in summary.json. A file may come from anywhere: a setting that is
unknown or makes no sense ends in a ConfigFileError of one line. What names a folder, a program or a tracker is not
taken from it: a setting with `from_file=False` keeps its default, and what is of a `Command`, which older versions
wrote beside the settings of the run, is left out.
"""

import json
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from fastcifar.config.config import Config, Run
from fastcifar.config.recipes import DEFAULT_RECIPE, find_recipe
from fastcifar.config.schedules import SCHEDULES, PerEpoch, PerStep, Schedule
from fastcifar.config.settings import COMMAND, NAMES, PARTS, SETTINGS, with_optimizer, with_settings
from fastcifar.config.validation import Part

MAX_BYTES = 1 << 20


class ConfigFileError(ValueError):
    """One line: which file, what is wrong with it, what to do."""


def config_to_plain(config: Config) -> dict[str, Any]:
    """Nested dicts with a part each; the schedule has its `name`, but not a function of your own; no tail is None."""
    return {**asdict(config), "schedule": _plain_schedule(config.schedule)}


def _plain_schedule(schedule: Schedule) -> dict[str, Any]:
    return {"name": schedule.name, **{name: v for name, v in asdict(schedule).items() if not callable(v)}}


def config_from_plain(values: Any, where: str, own: Schedule | None = None) -> Config:
    """The Config of `config_to_plain`. ConfigFileError names the first setting that is unknown or wrong.

    own: a schedule from Python, which no file can hold; it takes the place of one of its name and values.
    """
    try:
        _check_names(values, {f.name for f in fields(Config)}, "the settings")
        parts: dict[str, Any] = {
            name: value for name, value in values.items() if name in ("epochs", "seed", "from_python")
        }
        for name, kind in PARTS.items():
            if name != "schedule" and name in values and not (name == "tail" and values[name] is None):
                parts[name] = _part(kind, values[name], name)
        if "schedule" in values:
            schedule = values["schedule"]
            _check_names(schedule, None, "schedule")
            name = schedule.get("name")
            rest = {key: value for key, value in schedule.items() if key != "name"}
            if own is not None and schedule == _plain_schedule(own):
                parts["schedule"] = own
            elif name in (PerStep.name, PerEpoch.name):
                raise ValueError(f"schedule {name} is a function from Python, which the file does not hold")
            elif not isinstance(name, str) or name not in SCHEDULES:
                raise ValueError(f"schedule.name is {name!r}")
            else:
                parts["schedule"] = _part(SCHEDULES[name], rest, "schedule")
        return Config(**parts)
    except (TypeError, ValueError, OverflowError) as e:
        message = str(e).replace("Config.__init__() ", "")[:200]
        raise ConfigFileError(f"{where}: {message}; it was changed by hand or by another version") from e


def _part(kind: type[Part], values: Any, name: str) -> Any:
    if kind is Run and isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in COMMAND}
    _check_names(values, {f.name for f in fields(kind)}, name)
    part = kind(**{key: _as_field(value) for key, value in values.items()})
    return replace(part, **{f.name: f.default for f in fields(kind) if not f.metadata.get("from_file", True)})


def _as_field(value: Any) -> Any:
    """A value of a file as a setting has it: its lists are tuples."""
    return tuple(value) if isinstance(value, list) else value


def _check_names(values: Any, known: set[str] | None, name: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no table of names and values")
    unknown = sorted(map(repr, values.keys() - known)) if known is not None else []
    if unknown:
        raise ValueError(f"unknown setting {unknown[0][:80]}")


def load_config(path: Path, own: Schedule | None = None) -> Config:
    """The Config of a run folder's config.json. ConfigFileError when it cannot be read or is not one.

    own: as for `config_from_plain`.
    """
    return config_from_plain(_read(path, "the run's settings are needed to resume it"), str(path), own)


def load_defaults(path: Path, optimizer: str | None = None) -> Config:
    """The Config whose values --config makes the defaults. ConfigFileError when the file does not hold one.

    The file is the config.json of a run, of which an extension is left out, or has settings by flag. These change the
    recipe that it names, or the default one. JSON, or TOML where the name of the file ends so.

    optimizer: takes the place of the file's, with rates that suit it, but for those that settings by flag give.
    """
    values = _read(path, "give the config.json of a run, or settings by flag as JSON or .toml")
    if isinstance(values, dict) and isinstance(values.get("schedule"), dict):
        config = config_from_plain(values, str(path))
        config = replace(config, run=replace(config.run, extend_epochs=None))
        return with_optimizer(config, optimizer) if optimizer else config
    try:
        _check_names(values, None, "the file")
        settings = {name.replace("-", "_"): _as_field(value) for name, value in values.items()}
        _check_names(settings, set(NAMES), "the file")
        for name in settings:
            if name in COMMAND or (name in SETTINGS and not SETTINGS[name].field.metadata.get("from_file", True)):
                raise ValueError(f"{name} is not taken from a file; give it as a flag")
        recipe = find_recipe(settings.pop("recipe", DEFAULT_RECIPE))
        of_file = settings.pop("optimizer", None)
        if optimizer or of_file:
            recipe = with_optimizer(recipe, optimizer or of_file)
        return with_settings(recipe, **settings)
    except (TypeError, ValueError, OverflowError) as e:
        raise ConfigFileError(f"{path}: {str(e)[:200]}") from e


def _read(path: Path, advice: str) -> Any:
    """The content of a JSON or TOML file of at most MAX_BYTES. ConfigFileError, with the advice, when it is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigFileError(f"{path}: cannot be read ({e}); {advice}") from e
