"""The run folder: whether a run may start or continue in it, what is finished, and the command that continues it."""

import json
import shlex
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fastcifar.config.command import Command
from fastcifar.config.config import Config
from fastcifar.config.settings import SETTINGS, as_flag, method_differences, settings_by_flag
from fastcifar.runs import checkpoint, config_file, intervals, record
from fastcifar.runs.environment import utc_stamp

RESULTS = ("checkpoint.pt", "metrics.jsonl", "runs.jsonl", "summary.json", "model.safetensors", "swag.safetensors")


def check(config: Config, command: Command) -> None:
    """ValueError when the run cannot begin or go on in the folder that the command names. Nothing is written.

    Asked before the data is loaded, which may take minutes. A folder of a run that was stopped before its first
    checkpoint holds no results, and another run may begin there.
    """
    if command.resume:
        if not Path(command.resume).is_dir():
            raise ValueError(f"--resume {command.resume}: no such folder; give that of a run")
        if config.run.runs > 1 and (Path(command.resume) / "metrics.jsonl").exists():
            raise ValueError(f"--resume {command.resume}: holds one run, which --runs would overwrite; start several "
                             "seeds in a new folder")  # fmt: skip
        _check_settings(Path(command.resume) / "checkpoint.pt", config)
    elif command.out is not None:
        out = Path(command.out)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out}: is a file; choose a folder")
        if any((out / name).exists() for name in RESULTS):
            raise ValueError(f"--out {out}: holds a run already; continue it with --resume {out}, or choose another "
                             "folder")  # fmt: skip


def choose(config: Config, command: Command, dataset: str) -> Path:
    """The folder of a new or resumed run, created if it is missing. OSError when it cannot be created.

    dataset: name of the data set, which is there by now: a start that fails on its data leaves no folder.
    """
    if command.resume:
        return Path(command.resume)
    if command.out is None:
        return _new_folder(config, dataset)
    out = Path(command.out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def claim(out: Path, config: Config, command: Command) -> None:
    """Writes config.json of a new run and removes partial files of a killed process.

    The caller holds the folder's lock. Raises ValueError as `check`, since another process may have begun a run there.
    """
    check(config, command)
    if not command.resume:
        record.write_json(out / "config.json", config_file.config_to_plain(config))
    for name in ("config.json", "curves.png", *RESULTS):
        for part in out.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def keep_settings(out: Path, config: Config) -> None:
    """Writes the settings of a resumed run, as a larger number of seeds, so that `--resume` alone goes on with them.

    Called once the run has gone on: a start that is refused changes nothing. What a file does not give back, and where
    the data is, stay as they are in config.json.
    """
    try:
        saved = config_file.load_config(out / "config.json", own=config.schedule)
    except config_file.ConfigFileError:  # there is none, or another schedule from Python
        return
    now, before = settings_by_flag(config), settings_by_flag(saved)
    kept = [
        name for name, where in SETTINGS.items() if where.part != "data" and where.field.metadata.get("from_file", True)
    ]
    if any(before.get(name) != now.get(name) for name in kept):
        record.write_json(out / "config.json", config_file.config_to_plain(replace(config, data=saved.data)))


def require_kept(out: Path) -> None:
    """ValueError when the folder was removed since `claim`. What was written later is there, in a new folder."""
    if not (out / "config.json").is_file():
        raise ValueError(f"{out}: was removed while the run trained; it has been made again, with the results but "
                         "without config.json, so that nothing can continue the run")  # fmt: skip


def _check_settings(path: Path, config: Config) -> None:
    """CheckpointError when the checkpoint is not one of this config."""
    if path.exists():
        saved = config_file.config_from_plain(checkpoint.load(path)["config"], str(path), own=config.schedule)
        if changed := method_differences(saved, config):
            raise checkpoint.CheckpointError(f"{path}: has other settings than the config.json beside it: "
                                             f"{'; '.join(changed)[:200]}; put the right one back")  # fmt: skip


def _new_folder(config: Config, dataset: str) -> Path:
    recipe = config.run.recipe + ("-synthetic" if dataset == "synthetic" else "")
    name = f"{utc_stamp()}-{recipe}-s{config.seed}"
    for i in range(1, 1000):
        out = Path("runs") / (name if i == 1 else f"{name}-{i}")
        try:
            out.mkdir(parents=True)  # fails where another process was faster
            return out
        except FileExistsError:
            continue
    raise ValueError(f"runs/{name}: exists, with 999 numbered ones; give --out")


def finished(resumed: Path, config: Config) -> dict[str, Any] | None:
    """The summary of the run that is resumed when nothing is left to do, else None."""
    try:
        summary = json.loads((resumed / "summary.json").read_text())
        reached = summary["epochs"] >= (config.final_epochs) and summary.get("n", 1) >= config.run.runs
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return summary if reached else None


def finished_seeds(resumed: Path, config: Config) -> list[dict[str, Any]]:
    """The summaries in runs.jsonl of a resumed job of several seeds. ValueError when the file is damaged."""
    path = resumed / "runs.jsonl"
    if not path.exists() or not path.stat().st_size:  # interrupted in the first seed
        return []
    seeds = range(config.seed, config.seed + config.run.runs)
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        intervals.summarize_runs(rows, config.run.target)  # reads all that is needed of them later
        right = all(row["seed"] in seeds for row in rows) and len({row["seed"] for row in rows}) == len(rows)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        right = False
    if not right:
        raise ValueError(f"{path}: damaged or of other seeds; move it away to train all seeds again")
    return rows


def resume_command(out: Path, processes: int = 1, config: Config | None = None, command: Command | None = None) -> str:
    """The command that continues a run, to be typed in the current folder.

    config, command: name what the run uses and config.json does not give back.
    """
    script = sys.argv[0]
    program = [script] if Path(script).name == "train_fast.py" else ["-m", "fastcifar", "train"]  # as it was started
    words = [*program, "--resume", str(out)]
    values = (settings_by_flag(config) if config else {}) | (asdict(command) if command else {})
    values |= {"out": None, "config": None, "resume": None}  # the folder is named above
    for name, where in SETTINGS.items():
        in_file = where.part != "command" and where.field.metadata.get("from_file", True)
        if not in_file and name in values and values[name] != where.field.default:
            words += as_flag(name, values[name])
    if processes > 1:
        return shlex.join(["torchrun", f"--nproc-per-node={processes}", *words])
    name = Path(sys.executable).name
    found = shutil.which(name)
    python = name if found and Path(found) == Path(sys.executable) else sys.executable
    return shlex.join([python, *words])
