"""Runs compared with each other, their times apart, and runs that are cut and resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Recorder, train_in_folder

from fastcifar.observers.checkpoints import Interrupted
from fastcifar.runs import checkpoint
from fastcifar.training.observer import RunOutcome
from fastcifar.training.task import Task


def weights(result: RunOutcome) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two trees of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "time_s"} for row in rows]


def stop_at_step(recorder: Recorder, step: int) -> Callable[[], int | None]:
    """A signal that arrives in a step of the run that `recorder` watches."""
    return lambda: signal.SIGTERM if recorder.now >= step else None


def run_with_cuts(make: Callable[..., Task], out: Path, cuts: Sequence[int] = (), **settings: Any) -> RunOutcome:
    """A run that is interrupted after each of the steps `cuts` and resumed by a new task each time; its RunOutcome."""
    for i, cut in enumerate((*cuts, None)):
        task = make(**settings | ({"resume": str(out)} if i else {}))
        if cut is None:
            return train_in_folder(task, out)
        recorder = Recorder()
        with pytest.raises(Interrupted) as stopped:
            train_in_folder(task, out, stop_at_step(recorder, cut), recorder)
        assert stopped.value.number == signal.SIGTERM
        assert checkpoint.load(out / "checkpoint.pt")["state"]["step"] == cut
    raise AssertionError
