"""The run folder: which one, whether a run may begin or go on in it, and the command that goes on with it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from fastcifar import record
from fastcifar.config import Config
from fastcifar.timing import utc_stamp

RESULTS = ("checkpoint.pt", "metrics.jsonl", "runs.jsonl", "summary.json", "model.safetensors")


def find_run(wanted: str) -> Path:
    """The folder to resume; `auto` is the newest run below runs/ that has not ended. ValueError when there is none."""
    if wanted != "auto":
        folder = Path(wanted)
        if not folder.is_dir():
            raise ValueError(f"--resume {wanted}: no such folder; give the folder of a run, or auto for the newest "
                             "unfinished one below runs/")  # fmt: skip
        if not (folder / "config.json").exists():
            raise ValueError(f"--resume {wanted}: holds no run (there is no config.json in it); give a run's folder")
        return folder
    newest = [(_written_at(path.parent), path.parent) for path in Path("runs").glob("*/config.json")]
    unfinished = [pair for pair in newest if _modified(pair[1] / "summary.json") < pair[0]]
    if not unfinished:
        raise ValueError("--resume auto: no unfinished run below runs/; give its folder, or start without --resume")
    return max(unfinished)[1]


def _written_at(folder: Path) -> float:
    return max(_modified(folder / name) for name in ("config.json", "checkpoint.pt", "runs.jsonl"))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def claim(config: Config) -> Path:
    """The folder of a run that begins or goes on, config.json written. ValueError when it holds another run's results;
    a folder where a run was stopped before its first checkpoint is free to be used again. OSError: cannot be written.
    """
    if config.resume:
        out = Path(config.resume)
        if config.extend_epochs:  # so that the extension, too, goes on by --resume alone
            record.write_config(out, config)
        return out
    out = Path(config.out) if config.out else _new_folder(config)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; choose a folder")
    if any((out / name).exists() for name in RESULTS):
        raise ValueError(f"--out {out}: holds a run already; continue it with --resume {out}, or choose another folder")
    record.write_config(out, config)
    return out


def _new_folder(config: Config) -> Path:
    name = f"{utc_stamp()}-{config.recipe}-s{config.seed}"
    for i in range(1, 1000):
        out = Path("runs") / (name if i == 1 else f"{name}-{i}")
        try:
            out.mkdir(parents=True)  # fails where another process was faster
            return out
        except FileExistsError:
            continue
    raise ValueError(f"runs/{name}: exists, with 999 numbered ones; give --out")


def finished(config: Config) -> dict[str, Any] | None:
    """The summary of the run to be resumed when nothing is left to do; None when something is."""
    try:
        summary = json.loads((Path(config.resume or "") / "summary.json").read_text())
        reached = summary["epochs"] >= (config.extend_epochs or config.epochs) and summary.get("n", 1) >= config.runs
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return summary if reached else None


def resume_command(out: Path, processes: int = 1) -> str:
    """What to type, in the folder where this program was started, to go on with a run."""
    program = sys.argv[0] if sys.argv[0].endswith(".py") else "train_fast.py"
    if processes > 1:
        return shlex.join(["torchrun", f"--nproc-per-node={processes}", program, "--resume", str(out)])
    name = Path(sys.executable).name
    found = shutil.which(name)
    python = name if found and Path(found) == Path(sys.executable) else sys.executable
    return shlex.join([python, program, "--resume", str(out)])
