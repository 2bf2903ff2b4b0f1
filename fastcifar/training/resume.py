"""Restores the state of a run from its last checkpoint, after checking that the checkpoint belongs to this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcifar.config.config import Config
from fastcifar.config.settings import method_differences
from fastcifar.optim.schedule_table import count_steps, extend
from fastcifar.runs import checkpoint
from fastcifar.runs.config_file import config_from_plain
from fastcifar.training.state import State


def resume(state: State, folder: Path, config: Config, digest: str) -> bool:
    """Loads checkpoint.pt of a run folder into a fresh state, in place, and says whether there was one.

    A run that was stopped before its first checkpoint starts from the beginning. CheckpointError when the checkpoint
    is damaged, or is one of other settings or images; ValueError when the extension is shorter than the run.
    """
    path = folder / "checkpoint.pt"
    if not path.exists() and (folder / "config.json").exists():
        return False
    content = checkpoint.load(path)
    saved = config_from_plain(content["config"], str(path), own=config.schedule)
    changed = method_differences(saved, config)
    if content["digest"] != digest:
        changed.append("the images are not those it was trained on (checksum)")
    if changed:
        raise checkpoint.CheckpointError(f"{path}: may not change within a run: {'; '.join(changed)}")
    steps_per_epoch = state.steps_per_epoch
    num_steps = count_steps(config.final_epochs, steps_per_epoch)
    state.schedule = extend(state.schedule, saved, steps_per_epoch)
    if num_steps < state.num_steps:
        raise ValueError(f"extend_epochs {config.final_epochs:g} is shorter than the run it extends, "
                         f"{saved.final_epochs:g} epochs")  # fmt: skip
    try:
        time_s: Any = content["state"].pop("time_s", None)
        checkpoint.check(time_s, {"train": 0.0, "eval": 0.0}, "time_s")
        state.load(content["state"], num_steps)
    except (ValueError, TypeError) as e:
        raise checkpoint.CheckpointError(f"{path}: {e}; resume another run or start anew") from e
    state.schedule = extend(state.schedule, config, steps_per_epoch)
    for phase, seconds in time_s.items():  # times of the whole run, not of its last part
        state.stopwatch.time_s[phase] += seconds
    return True
