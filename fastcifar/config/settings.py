"""Settings by the names of their flags: the flat view of a nested Config that people type.

`with_settings` is how every flag, every keyword of the Python interface and every bench sets a value. It refuses a
setting that has no effect under the chosen schedule, optimizer, tail or views, since that is a mistake of the caller.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields, replace
from typing import Any, NamedTuple, get_args, get_type_hints

from fastcifar.config.command import Command
from fastcifar.config.config import Config, Optimizer, Tail
from fastcifar.config.recipes import swa30
from fastcifar.config.schedule import Schedule
from fastcifar.config.schedules import SCHEDULES
from fastcifar.config.validation import Part, flag_of


class Setting(NamedTuple):
    """Where a setting lives."""

    part: str
    """Field of Config, "" for a field of Config itself, "command" for one of the Command."""
    owners: tuple[type[Part], ...]
    """The classes that have it: one, or several schedules."""
    field: Field[Any]
    """The field of the first owner."""


def _part_types() -> dict[str, type[Part]]:
    hints = get_type_hints(Config)
    kinds = ((f.name, kind) for f in fields(Config) for kind in (hints[f.name], *get_args(hints[f.name])))
    return {name: kind for name, kind in kinds if isinstance(kind, type) and issubclass(kind, Part)}


PARTS: dict[str, type[Part]] = _part_types()
"""Parts of a Config by field name. That of the schedule is `Schedule`, one of several types."""


def _all_settings() -> Iterator[tuple[str, Setting]]:
    for f in fields(Config):
        if f.name in ("epochs", "seed"):
            yield f.name, Setting("", (Config,), f)
    owners: dict[str, list[tuple[str, type[Part], Field[Any]]]] = {}
    for part, kind in {**PARTS, "command": Command}.items():
        for owner in SCHEDULES.values() if kind is Schedule else (kind,):
            for f in fields(owner):
                owners.setdefault(flag_of(f.name, f.metadata), []).append((part, owner, f))
    for flag, found in owners.items():
        yield flag, Setting(found[0][0], tuple(owner for _, owner, _ in found), found[0][2])


SETTINGS: dict[str, Setting] = dict(_all_settings())
"""Every setting by its flag with underscores, except `schedule` itself, which names a type."""
NAMES = (*SETTINGS, "schedule")
COMMAND = tuple(f.name for f in fields(Command))
"""The settings that are of a Command."""


def settings_by_flag(config: Config) -> dict[str, Any]:
    """Every setting that the config has, by flag: those of its schedule only, and of a tail if there is one."""
    values: dict[str, Any] = {"epochs": config.epochs, "seed": config.seed, "schedule": config.schedule.name}
    for part in PARTS:
        value = getattr(config, part)
        if value is not None:
            values |= {flag_of(f.name, f.metadata): getattr(value, f.name) for f in fields(value)}
    return {"swa_start": None, **values}


def with_settings(config: Config, **settings: Any) -> Config:
    """The config with other values, by flag. ValueError for an unknown, wrong or ineffective setting.

    Another `schedule` keeps what it shares with the one before (the peak, the momenta); the rest takes the defaults of
    its type. `swa_start` None removes the tail.
    """
    if of_command := [name for name in settings if name in COMMAND]:
        raise ValueError(f"{of_command[0]} is no setting of a run; it belongs to a Command")
    return with_all_settings(config, settings)[0]


def with_all_settings(config: Config, settings: Mapping[str, Any]) -> tuple[Config, Command]:
    """As `with_settings`, and the Command of those that are of one."""
    for name in settings:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            raise ValueError(f"{name} is no setting" + (f"; did you mean {close[0]}?" if close else ""))
    changed = _changed(config, settings)
    command = Command(**{name: settings[name] for name in COMMAND if name in settings})
    _refuse_ineffective(changed, command, settings)
    return changed, command


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    changes: dict[str, dict[str, Any]] = {part: {} for part in ("", *PARTS, "command")}
    for flag, value in settings.items():
        if flag in SETTINGS:
            changes[SETTINGS[flag].part][SETTINGS[flag].field.name] = value
    parts = changes[""]
    for part in PARTS.keys() - {"schedule", "tail"}:
        if changes[part]:
            parts[part] = replace(getattr(config, part), **changes[part])
    if changes["tail"].get("start", config.tail and config.tail.start) is None:
        parts["tail"] = None
    elif changes["tail"]:
        parts["tail"] = replace(config.tail or Tail(), **changes["tail"])
    return replace(config, **parts, schedule=_changed_schedule(config, settings))


def _changed_schedule(config: Config, settings: Mapping[str, Any]) -> Schedule:
    name = settings.get("schedule", config.schedule.name)
    kind = type(config.schedule) if name == config.schedule.name else _schedule_type(name)
    known = {flag_of(f.name, f.metadata): f.name for f in fields(kind)}
    before = {flag_of(f.name, f.metadata): getattr(config.schedule, f.name) for f in fields(config.schedule)}
    values = {known[flag]: value for flag, value in {**before, **settings}.items() if flag in known}
    return kind(**values)


def _schedule_type(name: Any) -> type[Schedule]:
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"schedule is {name!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


class IneffectiveSetting(ValueError):
    """Raised for a setting that the config would ignore. `name` is the setting, the message says where it belongs."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"--{name.replace('_', '-')} has no effect {reason}")
        self.name = name


def _refuse_ineffective(config: Config, command: Command, names: Iterable[str]) -> None:
    """IneffectiveSetting for the first setting that the run would ignore. None, () and False ask for nothing."""
    values = {**settings_by_flag(config), **{name: getattr(command, name) for name in COMMAND}}
    for name in names:
        where, value = SETTINGS.get(name), values.get(name)
        if where and where.part == "schedule" and not isinstance(config.schedule, where.owners):
            owners = " and ".join(kind.name for kind in where.owners if issubclass(kind, Schedule))
            raise IneffectiveSetting(name, f"with schedule {config.schedule.name}: it belongs to {owners}")
        needs = where and where.field.metadata.get("needs")
        asks = name not in values or not (value is None or value is False or value in ((), "none"))
        if needs and asks and not needs.holds(config, command):
            raise IneffectiveSetting(name, f"here: it belongs to {needs.text}")


OPTIMIZERS: tuple[str, ...] = get_args(get_type_hints(Optimizer)["name"])

_SGD = Optimizer(name="sgd", batch_size=500, momentum=0.9, weight_decay=5e-4, bias_lr_scale=1.0, head_lr_scale=1.0)
_RATES: dict[bool, dict[str, Any]] = {  # by whether Muon trains the filters, at batch 500
    True: {"optimizer": swa30.optimizer, "peak": 0.12, "tail_lr": 0.012, "momentum_max": 0.9, "momentum_min": 0.6},
    False: {"optimizer": _SGD, "peak": 2.0, "tail_lr": 0.2, "momentum_max": 0.95, "momentum_min": 0.85},
}


def with_optimizer(recipe: Config, name: str) -> Config:
    """A recipe under another optimizer, with the learning rates, momenta and decay that suit it at batch size 500."""
    optimizer: Any = replace(recipe.optimizer, name=name)  # type: ignore[arg-type]  # checked by Optimizer
    muon = name == "muon"
    if muon == (recipe.optimizer.name == "muon"):
        return replace(recipe, optimizer=optimizer)
    rates = _RATES[muon]
    copied = ("momentum", "weight_decay", "bias_lr_scale", "head_lr_scale")
    optimizer = replace(optimizer, **{name: getattr(rates["optimizer"], name) for name in copied})
    known = {f.name for f in fields(recipe.schedule)} & rates.keys()
    schedule = replace(recipe.schedule, **{name: rates[name] for name in known})
    tail = recipe.tail and replace(recipe.tail, lr=rates["tail_lr"])
    return replace(recipe, optimizer=optimizer, schedule=schedule, tail=tail)


def as_flag(name: str, value: Any) -> list[str]:
    """The words of a command line that give a setting this value."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, *map(str, value if isinstance(value, tuple) else [value])]


def method_differences(saved: Config, now: Config) -> list[str]:
    """Settings that decide which weights are trained and differ, as `name: saved -> now`.

    The data source is left out: the images themselves are compared, by their checksum.
    """
    before, after = _method(saved), _method(now)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def _method(config: Config) -> dict[str, Any]:
    method = {name for name, where in SETTINGS.items() if where.owners[0].decides_weights and name != "data"}
    values = {name: value for name, value in settings_by_flag(config).items() if name in method or name == "schedule"}
    return {**values, "parts from Python": config.from_python or "none"}
