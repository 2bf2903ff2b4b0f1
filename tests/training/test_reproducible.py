"""Equal settings give equal bits, and the losses of a short run are known beforehand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import same, weights, without_times
from conftest import make_dataset, train_in_folder

from fastcifar.runs.environment import device_name
from fastcifar.training.loop import train

PINNED = Path(__file__).parent / "pinned_losses.json"


def test_equal_seeds_agree_bit_for_bit_and_others_do_not(make_quick_task, deterministic):
    torch.manual_seed(1)
    first = train(make_quick_task(epochs=2, seed=3, cutout_px=8, deterministic=True))
    torch.manual_seed(2)  # global generators play no part
    second = train(make_quick_task(epochs=2, seed=3, cutout_px=8, deterministic=True))
    other = train(make_quick_task(epochs=2, seed=4, cutout_px=8, deterministic=True))
    assert same(weights(first), weights(second))
    assert without_times(first.history) == without_times(second.history)
    assert not same(weights(first), weights(other))
    assert first.history[0]["loss_train"] != other.history[0]["loss_train"]


def test_model_files_of_equal_runs_are_equal_byte_for_byte(make_quick_task, deterministic, tmp_path):
    """In test_resume_loop.py, one of them is interrupted and resumed."""
    for name in "ab":
        train_in_folder(make_quick_task(deterministic=True, tta="flip"), tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_global_generators_are_left_alone(make_quick_task):
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    train(make_quick_task(epochs=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002


def test_losses_are_those_pinned(make_quick_task, deterministic):
    """Twenty steps, an epoch each. FASTCIFAR_PIN=1 writes them anew: only for a change of numbers that is meant."""
    settings = {"epochs": 20, "eval_every": 20, "swa_every": 2, "cutout_px": 8, "lr_peak": 0.1, "swa_lr": 0.02}
    task = make_quick_task(data_set=make_dataset(64, 10), batch_size=64, **settings)
    losses = [row["loss_train"] for row in train(task).history]
    assert len(losses) == 20
    kind = torch.backends.cpu.get_cpu_capability()
    made_on = f"{device_name(task.hardware.device)}, torch {torch.__version__}"
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    if os.environ.get("FASTCIFAR_PIN"):
        pinned[kind] = {"made_on": made_on, "losses": losses}
        PINNED.write_text(json.dumps(pinned, indent=1) + "\n")
    if kind not in pinned:
        pytest.skip(f"no losses are pinned for CPUs of kind {kind}")
    if pinned[kind]["made_on"] == made_on:
        assert losses == pinned[kind]["losses"]
    else:  # rounding differs, and from the second step on it decides which of two equal pixels is the largest
        assert losses[0] == pytest.approx(pinned[kind]["losses"][0], rel=1e-4)
        assert losses == pytest.approx(pinned[kind]["losses"], rel=0.1)
