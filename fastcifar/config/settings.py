"""Settings by the names of their flags: the flat view of a nested Config that people type.

`with_settings` is how every flag, every keyword of the Python interface and every bench sets a value. It refuses a
setting that has no effect under the chosen schedule, optimizer, tail or views, since that is a mistake of the caller.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, NamedTuple

from fastcifar.config.config import Augment, Config, Data, Evaluation, Machine, Model, Optimizer, Run, Tail
from fastcifar.config.schedules import SCHEDULES, Cyclic, Schedule
from fastcifar.config.validation import Part, flag_of

PARTS: dict[str, type[Part]] = {
    "data": Data, "model": Model, "augment": Augment, "optimizer": Optimizer, "tail": Tail, "evaluation": Evaluation,
    "machine": Machine, "run": Run,
}  # fmt: skip
"""Parts of a Config by field name, the schedule left out: it is one of several types."""
METHOD = ("data", "model", "augment", "optimizer", "schedule", "tail")
"""Parts that decide which weights are trained, besides epochs and seed. The images are compared by their checksum."""


class Setting(NamedTuple):
    """Where a setting lives."""

    part: str
    """Field of Config, or "" for a field of Config itself."""
    owners: tuple[type[Part], ...]
    """The classes that have it: one, or several schedules."""
    field: Field[Any]
    """The field of the first owner."""


def _all_settings() -> Iterator[tuple[str, Setting]]:
    for f in fields(Config):
        if f.name in ("epochs", "seed"):
            yield f.name, Setting("", (Config,), f)
    for part, kind in PARTS.items():
        for f in fields(kind):
            yield flag_of(f.name, f.metadata), Setting(part, (kind,), f)
    owners: dict[str, list[tuple[type[Schedule], Field[Any]]]] = {}
    for schedule in SCHEDULES.values():
        for f in fields(schedule):
            owners.setdefault(flag_of(f.name, f.metadata), []).append((schedule, f))
    for flag, found in owners.items():
        yield flag, Setting("schedule", tuple(schedule for schedule, _ in found), found[0][1])


SETTINGS: dict[str, Setting] = dict(_all_settings())
"""Every setting by its flag with underscores, except `schedule` itself, which names a type."""
NAMES = (*SETTINGS, "schedule")


def flat(config: Config) -> dict[str, Any]:
    """Every setting that the config has, by flag: those of its schedule only, and of a tail if there is one."""
    values: dict[str, Any] = {"epochs": config.epochs, "seed": config.seed, "schedule": config.schedule.name}
    for part in (*PARTS, "schedule"):
        value = getattr(config, part)
        if value is not None:
            values |= {flag_of(f.name, f.metadata): getattr(value, f.name) for f in fields(value)}
    return {"swa_start": None, **values}


def with_settings(config: Config, **settings: Any) -> Config:
    """The config with other values, by flag. ValueError for an unknown, wrong or ineffective setting.

    Another `schedule` keeps what it shares with the one before (the peak, the momenta); the rest takes the defaults of
    its type. `swa_start` None removes the tail.
    """
    for name in settings:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            raise ValueError(f"{name} is no setting" + (f"; did you mean {close[0]}?" if close else ""))
    changed = _changed(config, settings)
    refuse_ineffective(changed, settings)
    return changed


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    changes: dict[str, dict[str, Any]] = {part: {} for part in ("", *PARTS)}
    for flag, value in settings.items():
        if flag in SETTINGS and SETTINGS[flag].part in changes:
            changes[SETTINGS[flag].part][SETTINGS[flag].field.name] = value
    parts: dict[str, Any] = dict(changes.pop(""))
    tail = changes.pop("tail")
    for part, values in changes.items():
        if values:
            parts[part] = replace(getattr(config, part), **values)
    if tail.get("start", config.tail and config.tail.start) is None:
        parts["tail"] = None
    elif tail:
        parts["tail"] = replace(config.tail or Tail(), **tail)
    parts["schedule"] = _changed_schedule(config, settings)
    return replace(config, **parts)


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


@dataclass(frozen=True)
class _Condition:
    """Settings that do something only where `holds`; `belongs_to` says in an error where that is."""

    names: tuple[str, ...]
    belongs_to: str
    holds: Callable[[Config], bool]


def _sets_momentum(config: Config) -> bool:
    """Whether Optimizer.momentum is used: by Muon's SGD, by a schedule or a tail that leaves the momentum alone."""
    all_tail = config.tail is not None and config.tail.start == 0
    return config.optimizer.name == "muon" or not config.schedule.cycles_momentum or all_tail


_CONDITIONS = (
    _Condition(("swa_lr", "swa_anneal", "swa_momentum", "swa_every", "swag_rank"), "an averaging tail (--swa-start)",
               lambda c: c.tail is not None),
    _Condition(("tta_share",), "test-time views (--tta flip or flip-shift)", lambda c: c.evaluation.tta != "none"),
    _Condition(("momentum_min", "momentum_max"), "a schedule that cycles the momentum (--cycle-momentum)",
               lambda c: c.schedule.cycles_momentum),
    _Condition(("momentum",), "--optimizer muon, or a schedule that does not cycle the momentum", _sets_momentum),
    _Condition(("cyclic_gamma",), "--cyclic-mode exp_range",
               lambda c: isinstance(c.schedule, Cyclic) and c.schedule.mode == "exp_range"),
    _Condition(("low_res_px",), "a low-resolution part (--low-res-until above 0)",
               lambda c: any(c.augment.low_res_until) or not c.augment.low_res_px),
    _Condition(("shape",), "--network resnet9", lambda c: c.model.network == "resnet9" or c.model.shape is None),
    _Condition(("start",), "--network resnet9", lambda c: c.model.network == "resnet9" or c.model.start == "random"),
    _Condition(("stop_at",), "a run that measures before its end (--eval-every below --epochs)",
               lambda c: c.run.stop_at is None or c.evaluation.eval_every < c.epochs),
    _Condition(("train_stem",), "--network resnet9",
               lambda c: c.model.network == "resnet9" or c.model.train_stem == "always"),
)  # fmt: skip


def refuse_ineffective(config: Config, names: Iterable[str]) -> None:
    """IneffectiveSetting for the first setting that this config would ignore."""
    for name in names:
        where = SETTINGS.get(name)
        if where and where.part == "schedule" and not isinstance(config.schedule, where.owners):
            owners = " and ".join(kind.name for kind in where.owners if issubclass(kind, Schedule))
            raise IneffectiveSetting(name, f"with schedule {config.schedule.name}: it belongs to {owners}")
        for condition in _CONDITIONS:
            if name in condition.names and not condition.holds(config):
                raise IneffectiveSetting(name, f"here: it belongs to {condition.belongs_to}")


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
    values = flat(config)
    kept = {name for name, where in SETTINGS.items() if where.part in ("", *METHOD)} | {"schedule"}
    method = {name: value for name, value in values.items() if name in kept and name != "data"}
    return {**method, "parts from Python": config.from_python or "none"}
