"""On a card whitening and reflection lie inside the clock of every run, as in the programs to compare with."""

import pytest
import torch
from conftest import make_config, make_dataset, task_of

from fastcifar.training import loop
from fastcifar.training import prepare as preparing
from fastcifar.training.stopwatch import Stopwatch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]


def test_every_run_of_a_job_prepares_in_its_timed_part(monkeypatch):
    config = make_config(device="cuda", scale="small", compile="off", augment="torch", batch_size=100, lr_peak=0.2,
                         precision="bf16", epochs=1)  # fmt: skip
    task, phases = task_of(config, make_dataset(200, 100)), []
    prepare, stopwatch = preparing.preprocess, Stopwatch()

    def note(*args, **more) -> None:
        phases.append((stopwatch._running[-1], stopwatch.time_s["train"]))
        prepare(*args, **more)

    monkeypatch.setattr(preparing, "preprocess", note)
    for _ in range(2):
        stopwatch = Stopwatch(task.hardware.device)
        loop.train(task, stopwatch=stopwatch)
    assert phases == [("train", 0.0)] * 2  # before anything else of it
