"""The command line: flags from the fields of Config and Command, read by tyro, so that no setting is written twice.

The flags are flat and keep their names whatever part of the Config they belong to; `--help` shows them by part. Nothing
here imports torch, which takes seconds: `--help` and a wrong flag are answered at once.
"""

import contextlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest import mock

from fastcifar.config.command import Command
from fastcifar.config.config import SMOKE_IMAGES, Config
from fastcifar.config.recipes import DEFAULT_RECIPE, RECIPES, find_recipe
from fastcifar.config.schedules import SCHEDULES
from fastcifar.config.settings import (
    COMMAND,
    NAMES,
    OPTIMIZERS,
    PARTS,
    SETTINGS,
    method_differences,
    settings_by_flag,
    with_all_settings,
    with_optimizer,
)
from fastcifar.runs.config_file import load_config, load_defaults

T = TypeVar("T")


class UsageError(ValueError):
    """A wrong flag or value. The message is one line."""


def parse(argv: Sequence[str], prog: str = "train_fast.py", description: str = "") -> tuple[Config, Command]:
    """Flags -> Config and Command. The defaults come from --recipe or the file of --config (and suit --optimizer), or
    with --resume from that run.

    Raises UsageError or another ValueError of one line for anything wrong, and SystemExit(0) after --help.
    """
    if argv and argv[-1] == "--recipe":
        raise UsageError(f"--recipe: expected a name; known: {', '.join(RECIPES)}")
    resumed, recipe, file = (_value_of(argv, flag) for flag in ("--resume", "--recipe", "--config"))
    if file is not None and (resumed or recipe):
        raise UsageError(f"--config {file}: its settings take the place of --recipe and --resume; leave these out")
    optimizer = _value_of(argv, "--optimizer")
    optimizer = optimizer if optimizer in OPTIMIZERS else None
    if file is not None:
        default = load_defaults(Path(file), optimizer)
    else:
        default = find_recipe(recipe or DEFAULT_RECIPE)
        default = with_optimizer(default, optimizer) if optimizer else default
    if resumed is not None:
        folder = find_run(resumed)
        default = saved = load_config(folder / "config.json")
    values = _parse_flags(argv, default, prog, description)
    given = {name: values[name] for name in _given(argv)}
    config, command = with_all_settings(default, given if resumed is None else {**given, "resume": str(folder)})
    if resumed is not None and (changed := method_differences(saved, config)):
        raise UsageError(f"--resume {folder}: these settings may not change within a run: {'; '.join(changed)}; leave "
                         "them out, or start a new run")  # fmt: skip
    if config.run.smoke:
        config = replace(config, epochs=1.0, data=replace(config.data, subset=config.data.subset or SMOKE_IMAGES))
    return config, command


def parse_config(argv: Sequence[str], prog: str) -> Config:
    """The Config of the flags, for what trains no run of its own. UsageError for a flag of the Command but --config."""
    if given := [name for name in _given(argv) if name in COMMAND and name != "config"]:
        raise UsageError(f"--{given[0].replace('_', '-')} has no effect here: it belongs to fastcifar train")
    return parse(argv, prog)[0]


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
    """The last value of a flag, as tyro takes it; None where it is not given."""
    value = None
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            value = argv[i + 1]
        elif word.startswith(flag + "="):
            value = word.partition("=")[2]
    return value


def _given(argv: Sequence[str]) -> list[str]:
    """Settings that the command line names."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    return [name if name in NAMES else name.removeprefix("no_") for name in names]


def _parse_flags(argv: Sequence[str], default: Config, prog: str, description: str) -> dict[str, Any]:
    """The value of every setting, by flag: that of the command line, or the default's.

    tyro reads the dataclasses. Its rule here puts all schedules into one group and names the flags, and makes nothing
    of the values yet: which of them were given decides what is refused.
    """
    from tyro.conf import OmitArgPrefixes
    from tyro.constructors import MISSING_NONPROP, ConstructorRegistry, StructConstructorSpec, StructFieldSpec

    parts = {**PARTS, "command": Command}
    specs = _flag_specs(settings_by_flag(default))
    specs[""] += [StructFieldSpec(part, kind, MISSING_NONPROP) for part, kind in parts.items()]
    group_of = {Config: "", **{kind: part for part, kind in parts.items()}}
    registry = ConstructorRegistry()

    def as_dict(**values: Any) -> dict[str, Any]:
        return values

    @registry.struct_rule
    def rule(info: Any) -> StructConstructorSpec | None:
        return StructConstructorSpec(as_dict, tuple(specs[group_of[info.type]])) if info.type in group_of else None

    with registry:
        parsed: Any = parse_quietly(Config, argv, prog, description=description or None, config=(OmitArgPrefixes,))
    return {name: value for group in (parsed, *map(parsed.pop, parts)) for name, value in group.items()}


def _flag_specs(defaults: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What tyro reads of each setting, its help included, with the name and the default of the flag, by part."""
    from tyro.constructors import MISSING_NONPROP, ConstructorRegistry, StructFieldSpec, StructTypeInfo

    specs: dict[str, list[Any]] = {part: [] for part in ("", *PARTS, "command")}
    choices: Any = Literal[tuple(SCHEDULES)]
    specs["schedule"].append(StructFieldSpec("schedule", choices, defaults["schedule"], "Learning-rate schedule."))
    read: dict[tuple[type, str], Any] = {}
    for owner in {where.owners[0] for where in SETTINGS.values()}:
        of_owner: Any = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(owner, MISSING_NONPROP, False))
        read |= {(owner, spec.name): spec for spec in of_owner.fields}
    for flag, where in SETTINGS.items():
        spec = read[where.owners[0], where.field.name]
        kind, default, text = spec.type, defaults.get(flag, where.field.default), " ".join(spec.helptext().split())
        if flag == "shape":
            kind, default = str | None, default and str(default)
        if flag == "swa_start":
            kind |= None
        if flag == "recipe":
            text += f" Names: {', '.join(RECIPES)}."
        if where.part == "schedule" and len(where.owners) < len(SCHEDULES):
            text = f"{', '.join(kind.name for kind in where.owners)}: {text[0].lower()}{text[1:]}"  # type: ignore[attr-defined]
        specs["" if flag == "recipe" else where.part].append(StructFieldSpec(flag, kind, default, text))
    return specs


def parse_quietly(kind: type[T], argv: Sequence[str], prog: str, **more: Any) -> T:
    """The `kind` that tyro makes of the words. UsageError in place of tyro's box; SystemExit(0) after --help."""
    import tyro  # takes a tenth of a second: only when flags are read

    messages = io.StringIO()
    wide = {"COLUMNS": "1000"}  # no line breaks in the message: it becomes one line
    wants_help = any(word in ("-h", "--help") for word in argv)
    try:
        with contextlib.redirect_stderr(messages), mock.patch.dict(os.environ, {} if wants_help else wide):
            return tyro.cli(kind, args=list(argv), prog=prog, **more)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UsageError(_one_line(messages.getvalue())) from None


def _one_line(box: str) -> str:
    """The message in tyro's box, without the frame, the title and the hints."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or set(text) <= {"─", "-"}:  # a border, or the rule before a hint
            sections.append([])
        else:
            sections[-1].append(text)
    texts = [" ".join(section) for section in sections if section]
    if "╭" not in box:  # where the terminal's encoding is ASCII there is no box, and the title is a section
        texts = texts[1:]
    text = re.sub(r"Error parsing (Flags: |Options: )?", "", (texts or [""])[0])
    return f"{text} (see --help)"
