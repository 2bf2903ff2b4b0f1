"""The command line, made from the fields of Config by tyro; nothing is written twice."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from fastcifar.checkpoint import config_from, differences
from fastcifar.config import Config
from fastcifar.data import SMOKE_IMAGES
from fastcifar.recipes import OPTIMIZERS, RECIPES, with_optimizer

MAX_CONFIG_BYTES = 1 << 20


class UsageError(ValueError):
    """A wrong flag or value; the message is one line."""


def parse(argv: Sequence[str], prog: str = "train_fast.py", description: str = "") -> Config:
    """Flags -> Config. Defaults come from --recipe (and suit --optimizer), or with --resume from the run that goes on.

    UsageError for anything wrong; SystemExit(0) after --help.
    """
    resumed = _value_of(argv, "--resume")
    default = recipe(_value_of(argv, "--recipe") or Config.recipe)
    if (optimizer := _value_of(argv, "--optimizer")) in OPTIMIZERS:
        default = with_optimizer(default, optimizer)
    if resumed is not None:
        out = find_run(resumed)
        default = saved = replace(_saved_config(out), resume=str(out), out=None)
        argv = _without(argv, "--resume")
    config = _tyro(argv, default, prog, description)
    if resumed is not None and (changed := differences(saved, config)):
        raise UsageError(f"--resume {out}: these settings may not change within a run: {'; '.join(changed)}; leave "
                         "them out, or start a new run")  # fmt: skip
    if config.smoke:
        config = replace(config, epochs=1.0, subset=config.subset or SMOKE_IMAGES)
    return config


def recipe(name: str) -> Config:
    """The Config of a recipe; UsageError lists the known ones."""
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r} is unknown; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def find_run(wanted: str) -> Path:
    """The folder to resume; `auto` is the newest run below runs/ that has not ended."""
    if wanted != "auto":
        out = Path(wanted)
        if not (out / "checkpoint.pt").is_file() and not (out / "config.json").is_file():
            raise UsageError(f"--resume {wanted}: there is no checkpoint.pt in it, nor the config.json of a run that "
                             "was stopped before its first one; give the folder of a run")  # fmt: skip
        return out
    runs = [(max(map(_modified, (p, p.with_name("checkpoint.pt"), p.with_name("runs.jsonl")))), p.parent)
            for p in Path("runs").glob("*/config.json")]  # fmt: skip
    unfinished = [(changed_at, out) for changed_at, out in runs if _modified(out / "summary.json") < changed_at]
    if not unfinished:
        raise UsageError("--resume auto: no unfinished run below runs/; give its folder, or start without --resume")
    return max(unfinished)[1]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _saved_config(folder: Path) -> Config:
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"{path}: cannot be read ({e}); the run's settings are needed to resume it") from e
    return config_from(values, str(path))


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


def _tyro(argv: Sequence[str], default: Config, prog: str, description: str) -> Config:
    import tyro  # takes a tenth of a second: only when flags are read

    said = io.StringIO()
    wide = {"COLUMNS": "1000"}  # no line breaks in the message: it becomes one line
    asks_help = any(w in ("-h", "--help") for w in argv)
    try:
        with contextlib.redirect_stderr(said), mock.patch.dict(os.environ, {} if asks_help else wide):
            return tyro.cli(Config, args=list(argv), default=default, prog=prog, description=description or None)
    except SystemExit as e:
        if e.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """The message of tyro's box, without the box, its title and its hints."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith(("╭", "╰")) or set(text) <= {"─", "-"}:  # a border, or the rule before a hint
            sections.append([])
        else:
            sections[-1].append(text)
    said = [" ".join(section) for section in sections if section]
    if "╭" not in box:  # where the terminal's encoding is ASCII there is no box, and the title is a section
        said = said[1:]
    text = (said or [""])[0].replace("Error parsing Config: ", "").replace("Error parsing ", "")
    return f"{text} (see --help)"
