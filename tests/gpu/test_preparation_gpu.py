"""On a card whitening and reflection lie inside the clock of every run, as in the programs to compare with."""

import pytest
import torch
from conftest import make_config, make_dataset

from fastcifar.training import loop
from fastcifar.training.hardware import choose_hardware
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import make_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]


def test_every_run_of_a_job_prepares_in_its_timed_part(monkeypatch):
    config = make_config(device="cuda", scale="small", compile="off", augment="torch", batch_size=100, lr_peak=0.2,
                         precision="bf16", epochs=1)  # fmt: skip
    task, phases = make_task(config, make_dataset(200, 100), choose_hardware(config)), []
    prepare, stopwatch = loop.prepare, Stopwatch()

    def note(task, model) -> None:
        phases.append((stopwatch._running[-1], stopwatch.time_s["train"]))
        prepare(task, model)

    monkeypatch.setattr(loop, "prepare", note)
    for _ in range(2):
        stopwatch = Stopwatch(task.hardware.device)
        loop.train(task, stopwatch=stopwatch)
    assert phases == [("train", 0.0)] * 2  # before anything else of it
