"""Training that fails ends with a diagnosis and ruins nothing; fp16 overflow only skips steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comparison import stop_at_step, weights
from conftest import Recorder, make_dataset, train_in_folder

from fastcifar.config.schedules import PerEpoch
from fastcifar.training import start, summary
from fastcifar.training import state as state_module
from fastcifar.training.loop import train
from fastcifar.training.state import Diverged


@pytest.fixture
def exploding_task(make_quick_task):
    """A run whose learning rate is far too large from its second epoch on."""
    task = make_quick_task(epochs=3)
    schedule = PerEpoch(peak=0.1, factor=lambda epoch: 1.0 if epoch == 0 else 1e30)
    return replace(task, config=replace(task.config, schedule=schedule))


def assert_good_after_an_epoch(path):
    """The checkpoint is of the first epoch's end, and finite."""
    state = torch.load(path, weights_only=True)["state"]
    assert state["step"] == 8 and all(w.isfinite().all() for w in state["model"].values())


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(exploding_task, tmp_path):
    kept: list[bytes] = []

    class Watching(Recorder):
        def on_step(self, run):
            super().on_step(run)
            if run.step == 9:
                kept.append((tmp_path / "checkpoint.pt").read_bytes())

    with pytest.raises(Diverged, match=r"in epoch 2 .*lower --lr-peak") as error:
        train_in_folder(exploding_task, tmp_path, progress=Watching())
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept[0]
    assert_good_after_an_epoch(tmp_path / "checkpoint.pt")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "model.safetensors").exists()


def test_an_interrupted_run_does_not_save_ruined_weights(exploding_task, tmp_path):
    recorder = Recorder()
    with pytest.raises(Diverged, match="not finite"):
        train_in_folder(exploding_task, tmp_path, stop_at_step(recorder, 12), recorder)
    assert_good_after_an_epoch(tmp_path / "checkpoint.pt")


def test_accuracy_at_chance_after_many_steps_ends_the_run(make_quick_task):
    same_image = replace(make_dataset(256, 80), x_train=np.full((256, 32, 32, 3), 90, np.uint8),
                         x_test=np.full((80, 32, 32, 3), 90, np.uint8))  # fmt: skip
    with pytest.raises(Diverged, match=r"accuracy is 10\.0% after the first epoch, which is chance for 10 classes"):
        train(make_quick_task(data_set=same_image, epochs=3, batch_size=5))
    short = train(make_quick_task(data_set=same_image, epochs=3))
    assert short.summary["accuracy"] == 0.1  # 8 steps: too early to tell
    of_two = replace(same_image, classes=("a", "b"), y_train=same_image.y_train % 2, y_test=same_image.y_test % 2)
    assert train(make_quick_task(data_set=of_two, epochs=2, batch_size=5)).summary["accuracy"] == 0.5


def test_overflow_in_fp16_skips_steps_and_the_table_goes_on(make_quick_task, monkeypatch):
    for module in (start, state_module, summary):
        monkeypatch.setattr(module, "FIRST_LOSS_SCALE", 2.0**26)
    task = make_quick_task(make_dataset(64, 20), epochs=3, batch_size=8)  # a CPU is slow at fp16
    task = replace(task, hardware=replace(task.hardware, dtype=torch.float16))
    result = train(task)
    assert 0 < result.summary["steps_skipped_fp16"] < 24
    assert result.history[-1]["step"] == 24
    assert all(w.isfinite().all() for w in weights(result).values())
    assert result.history[-1]["lr"] == result.schedule.table[-1, 0]
