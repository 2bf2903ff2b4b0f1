"""The loop goes on from any step: with the same bits, over the same images, under the same settings only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import run_with_cuts, same, stop_at_step, weights, without_times
from conftest import Recorder, make_dataset, train_in_folder

from fastcifar.observers.checkpoints import Interrupted


@pytest.mark.parametrize(
    ("settings", "cuts"),
    [
        # in the first epoch, between epochs, in the tail between two records, after the last step
        ({"epochs": 3, "swa_every": 2}, [3, 8, 19, 24]),
        ({"epochs": 3, "checkpoint_every": 0}, [2, 11, 17, 23]),
        ({"epochs": 2.5, "cutout_px": 8, "mirror": "random"}, [4, 18]),  # in the last, partial epoch
        ({"epochs": 3, "optimizer": "muon"}, [4, 11, 15]),
        (
            {"epochs": 4, "schedule": "plateau", "val_split": 0.1, "patience": 0, "factor": 0.5, "batch_size": 29},
            [4, 13, 15],
        ),
        ({"epochs": 2, "low_res_px": 16, "low_res_until": 0.5, "norm": "gn-ws"}, [5, 12]),
        ({"epochs": 1, "precision": "bf16"}, [3, 7]),
    ],
)
def test_a_resumed_run_is_bit_identical(make_quick_task, tmp_path, deterministic, settings, cuts):
    settings = {"tta": "flip"} | settings
    whole = run_with_cuts(make_quick_task, tmp_path / "whole", **settings)
    parts = run_with_cuts(make_quick_task, tmp_path / "parts", cuts, **settings)
    assert same(weights(parts), weights(whole))
    assert without_times(parts.history) == without_times(whole.history)
    for key in ("accuracy", "accuracy_raw", "accuracy_swa", "accuracy_tta", "swa_recorded", "loss_last", "num_steps"):
        assert parts.summary[key] == whole.summary[key], key
    ends = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["state"] for name in ("whole", "parts")]
    assert same(ends[0]["model"], ends[1]["model"]) and ends[0]["step"] == ends[1]["step"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert without_times([json.loads(x) for x in lines[0]]) == without_times([json.loads(x) for x in lines[1]])
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_finished_run_goes_on_where_it_is_extended(make_quick_task, tmp_path):
    train_in_folder(make_quick_task(epochs=3), tmp_path)
    longer = train_in_folder(make_quick_task(epochs=3, resume=str(tmp_path), extend_epochs=4), tmp_path)
    assert [row["step"] for row in longer.history] == [8, 16, 24, 32]
    assert longer.history[-1]["lr"] == 0.2 and longer.history[-1]["phase"] == "tail"
    assert (longer.summary["swa_recorded"], longer.summary["epochs"], longer.summary["num_steps"]) == (2, 4, 32)


def test_an_extended_run_can_be_interrupted_and_resumed(make_quick_task, tmp_path):
    train_in_folder(make_quick_task(epochs=3), tmp_path)
    settings = {"epochs": 3, "resume": str(tmp_path), "extend_epochs": 4}
    recorder = Recorder()
    with pytest.raises(Interrupted):
        train_in_folder(make_quick_task(**settings), tmp_path, stop_at_step(recorder, 28), recorder)
    assert train_in_folder(make_quick_task(**settings), tmp_path).history[-1]["step"] == 32


def resume_after_an_epoch(make: Callable[..., Any], out: Path, **settings: Any) -> Any:
    """A run of one epoch, and its resumption with further settings."""
    train_in_folder(make(epochs=1), out)
    return train_in_folder(make(**{"epochs": 1, "resume": str(out), **settings}), out)


def test_other_images_are_not_resumed(make_quick_task, tmp_path):
    with pytest.raises(ValueError, match="not those it was trained on"):
        resume_after_an_epoch(make_quick_task, tmp_path, data_set=make_dataset(seed=9))


def test_other_settings_are_not_resumed(make_quick_task, tmp_path):
    with pytest.raises(ValueError, match=r"lr_peak: 0\.5 -> 0\.25"):
        resume_after_an_epoch(make_quick_task, tmp_path, lr_peak=0.25)
