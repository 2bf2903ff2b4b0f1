"""The run folder: whether a run may begin or go on in it, what is finished in it, and how to go on with it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from fastcifar import checkpoint, record
from fastcifar.config import Config
from fastcifar.timing import utc_stamp

RESULTS = ("checkpoint.pt", "metrics.jsonl", "runs.jsonl", "summary.json", "model.safetensors")


def choose(config: Config) -> Path:
    """The folder of a run that begins or goes on; made if it is missing. OSError when it cannot be."""
    if config.resume:
        return Path(config.resume)
    if config.out is None:
        return _new_folder(config)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def claim(out: Path, config: Config) -> None:
    """Makes the folder, held by this process, that of the run: config.json written, parts of files of a killed process
    removed. ValueError when it has results of another run; one that was stopped before its first checkpoint has none.
    """
    if config.resume:
        _check_settings(out / "checkpoint.pt", config)
    elif any((out / name).exists() for name in RESULTS):
        raise ValueError(f"--out {out}: holds a run already; continue it with --resume {out}, or choose another folder")
    if not config.resume or config.extend_epochs:  # so that an extension, too, goes on by --resume alone
        record.write_config(out, config)
    for name in ("config.json", "curves.png", *RESULTS):
        for part in out.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def _check_settings(path: Path, config: Config) -> None:
    """CheckpointError when a checkpoint is not one of this config, found before time is spent on the data."""
    if path.exists():
        saved = checkpoint.config_from(checkpoint.load(path)["config"], str(path))
        if changed := checkpoint.differences(saved, config):
            raise checkpoint.CheckpointError(f"{path}: has other settings than the config.json beside it: "
                                             f"{'; '.join(changed)[:200]}; put the right one back")  # fmt: skip


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


def finished_seeds(config: Config) -> list[dict[str, Any]]:
    """The summaries in runs.jsonl of a job of several seeds that goes on; ValueError when the file is damaged."""
    path = Path(config.resume or "") / "runs.jsonl"
    if config.resume is None or not path.exists():
        return []
    seeds = range(config.seed, config.seed + config.runs)
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        record.summarize_runs(rows, config.target)  # reads all that is needed of them later
        right = all(row["seed"] in seeds for row in rows) and len({row["seed"] for row in rows}) == len(rows)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        right = False
    if not right:
        raise ValueError(f"{path}: damaged or of other seeds; move it away to train all seeds again")
    return rows


def resume_command(out: Path, processes: int = 1) -> str:
    """What to type, in the folder where this program was started, to go on with a run."""
    program = sys.argv[0] if sys.argv[0].endswith(".py") else "train_fast.py"
    if processes > 1:
        return shlex.join(["torchrun", f"--nproc-per-node={processes}", program, "--resume", str(out)])
    name = Path(sys.executable).name
    found = shutil.which(name)
    python = name if found and Path(found) == Path(sys.executable) else sys.executable
    return shlex.join([python, program, "--resume", str(out)])
