"""The command line: flags made from the fields of Config by tyro, so that no setting is written twice.

The flags are flat and keep their names whatever part of the Config they belong to; `--help` shows them by part.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from fastcifar.cli.options import UsageError, parse_quietly
from fastcifar.config.config import Config
from fastcifar.config.recipes import DEFAULT_RECIPE, OPTIMIZERS, find_recipe, with_optimizer
from fastcifar.config.schedules import SCHEDULES
from fastcifar.config.settings import NAMES, SETTINGS, flat, method_differences, with_settings
from fastcifar.data.load import SMOKE_IMAGES
from fastcifar.runs.config_file import load_config

HEADINGS = {
    "": "", "data": "data", "model": "network", "augment": "augmentation", "optimizer": "optimizer",
    "schedule": "schedule", "tail": "averaging tail", "evaluation": "evaluation", "machine": "machine", "run": "run",
}  # fmt: skip
"""Heading in --help of each part of the Config: the method first, machine and files after."""


def parse(argv: Sequence[str], prog: str = "train_fast.py", description: str = "") -> Config:
    """Flags -> Config. The defaults come from --recipe (and suit --optimizer), or with --resume from that run.

    Raises UsageError or another ValueError of one line for anything wrong, and SystemExit(0) after --help.
    """
    resumed = _value_of(argv, "--resume")
    default = find_recipe(_value_of(argv, "--recipe") or DEFAULT_RECIPE)
    if (optimizer := _value_of(argv, "--optimizer")) in OPTIMIZERS:
        default = with_optimizer(default, str(optimizer))
    if resumed is not None:
        folder = find_run(resumed)
        saved = load_config(folder / "config.json")
        default = saved = replace(saved, run=replace(saved.run, resume=str(folder)))
        argv = _without(argv, "--resume")
    values = _parse_flags(argv, default, prog, description)
    config = with_settings(default, **{name: values[name] for name in _given(argv)})
    if resumed is not None and (changed := method_differences(saved, config)):
        raise UsageError(f"--resume {folder}: these settings may not change within a run: {'; '.join(changed)}; leave "
                         "them out, or start a new run")  # fmt: skip
    if config.run.smoke:
        config = replace(config, epochs=1.0, data=replace(config.data, subset=config.data.subset or SMOKE_IMAGES))
    return config


def find_run(folder: str) -> Path:
    """The run folder to resume; `auto` is the newest run below runs/ that has a checkpoint and has not ended.

    Raises UsageError.
    """
    if folder != "auto":
        out = Path(folder)
        if not (out / "checkpoint.pt").is_file() and not (out / "config.json").is_file():
            raise UsageError(f"--resume {folder}: there is no checkpoint.pt in it, nor the config.json of a run that "
                             "was stopped before its first one; give the folder of a run")  # fmt: skip
        return out
    runs = {p.parent: _changed_at(p.parent) for p in Path("runs").glob("*/config.json")}
    unfinished = [out for out, changed_at in runs.items() if _modified(out / "summary.json") < changed_at]
    if not unfinished:
        raise UsageError("--resume auto: no unfinished run with a checkpoint below runs/; give its folder, or start "
                         "without --resume")  # fmt: skip
    return max(unfinished, key=lambda out: runs[out])


def _changed_at(out: Path) -> float:
    """When a run, or a job of several seeds, was started, extended or saved last; 0 where nothing is saved."""
    saved_at = max(map(_modified, (out / "checkpoint.pt", out / "runs.jsonl", *out.glob("seed*/checkpoint.pt"))))
    return max(saved_at, _modified(out / "config.json")) if saved_at else 0.0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _without(argv: Sequence[str], flag: str) -> list[str]:
    kept = [w for w in argv if not w.startswith(flag + "=")]
    if flag in kept:
        i = kept.index(flag)
        del kept[i : i + 2]
    return kept


def _given(argv: Sequence[str]) -> list[str]:
    """Settings that the command line names."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    return [name if name in NAMES else name.removeprefix("no_") for name in names]


def _parse_flags(argv: Sequence[str], default: Config, prog: str, description: str) -> dict[str, Any]:
    """The value of every setting, by flag: tyro's, or the default's."""
    import tyro  # takes a tenth of a second: only when flags are read

    parts = _flag_types()
    values = flat(default)
    values["shape"] = values["shape"] and str(values["shape"])
    groups = {}
    for part, kind in parts.items():
        known = {f.name: values[f.name] for f in fields(kind) if f.name in values}
        groups[part] = kind(**known)
    everything = make_dataclass("Flags", [(part, kind) for part, kind in parts.items()], frozen=True)
    parsed: Any = parse_quietly(everything, argv, prog, default=everything(**groups), description=description or None,
                           config=(tyro.conf.OmitArgPrefixes,))  # fmt: skip
    return {f.name: getattr(getattr(parsed, part), f.name) for part, kind in parts.items() for f in fields(kind)}


@functools.cache
def _flag_types() -> dict[str, type]:
    """A dataclass of flat flags for each heading. The schedule's has the settings of all schedules."""
    import tyro

    docs = {kind: _field_docs(kind) for kind in {where.owners[0] for where in SETTINGS.values()}}
    types = {}
    for part, heading in HEADINGS.items():
        members: list[Any] = []
        if part == "schedule":
            names = Literal[tuple(SCHEDULES)]  # type: ignore[valid-type]
            members.append(("schedule", Annotated[names, tyro.conf.arg(help="Learning-rate schedule.")], field()))
        for flag, where in SETTINGS.items():
            if part != ("" if flag == "recipe" else where.part):  # --recipe stands first in --help
                continue
            hint = get_type_hints(where.owners[0])[where.field.name]
            text = docs[where.owners[0]][where.field.name]
            if part == "schedule" and len(where.owners) < len(SCHEDULES):
                text = f"{', '.join(kind.name for kind in where.owners)}: {text[0].lower()}{text[1:]}"  # type: ignore[attr-defined]
            if flag == "swa_start":
                hint = hint | None
            if flag == "shape":
                hint = str | None
            default = where.field.default
            members.append((flag, Annotated[hint, tyro.conf.arg(help=text)],
                            field(default=None if flag == "swa_start" else default)))  # fmt: skip
        members.sort(key=lambda member: member[2].default is not MISSING)
        types[(heading or "method").replace(" ", "_")] = make_dataclass(part or "method", members, frozen=True)
    return types


def _field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        if not cls.__module__.startswith("fastcifar"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for before, node in zip(tree.body, tree.body[1:], strict=False):
            is_field = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
            if is_field and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docs[before.target.id] = " ".join(str(node.value.value).split())  # type: ignore[attr-defined]
    return docs
