"""Plateau, the one schedule that needs a metric: its rows to come follow torch's on the same accuracies."""

import io
from typing import Any

import pytest
import torch
from conftest import make_config
from torch.optim import SGD
from torch.optim import lr_scheduler as torch_schedulers
from torch_rows import LARGEST_DIFFERENCE

from fastcifar.optim.schedule_table import ScheduleTable, make_schedule_table

METRICS = [0.3, 0.4, 0.4, 0.39, 0.4, 0.41, 0.3, 0.3, 0.41, 0.41, 0.41, 0.5]
PLATEAU: dict[str, Any] = {"schedule": "plateau", "val_split": 0.1, "lr_peak": 0.1, "factor": 0.5, "patience": 1}


def torch_plateau_rows(steps_per_epoch: int) -> torch.Tensor:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch_schedulers.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1)
    rows = []
    for metric in METRICS:
        rows += [optimizer.param_groups[0]["lr"]] * steps_per_epoch
        scheduler.step(metric)
    return torch.tensor(rows, dtype=torch.float64)


def go_on(schedule: ScheduleTable, steps_per_epoch: int, first_epoch: int, last_epoch: int) -> None:
    for epoch in range(first_epoch, last_epoch):
        schedule.end_epoch((epoch + 1) * steps_per_epoch, METRICS[epoch])


def test_plateau_equals_torch_on_the_same_metrics():
    schedule = make_schedule_table(make_config(epochs=len(METRICS), swa_start=None, **PLATEAU), 3)
    assert (schedule.table[:, 0] == 0.1).all()  # all that is known beforehand
    go_on(schedule, 3, 0, len(METRICS))
    assert (schedule.table[:, 0] - torch_plateau_rows(3)).abs().max() < LARGEST_DIFFERENCE
    assert schedule.table[-1, 0] < 0.1 / 3 and (schedule.table[:, 1] == 0.9).all()


@pytest.mark.parametrize("cut", range(len(METRICS)))
def test_plateau_goes_on_from_a_checkpoint(cut):
    config = make_config(epochs=len(METRICS), swa_start=None, **PLATEAU)
    first, file = make_schedule_table(config, 3), io.BytesIO()
    go_on(first, 3, 0, cut)
    torch.save(first.state(), file)
    file.seek(0)
    second = make_schedule_table(config, 3)
    second.load(torch.load(file, weights_only=True))
    go_on(second, 3, cut, len(METRICS))
    assert (second.table[:, 0] - torch_plateau_rows(3)).abs().max() < LARGEST_DIFFERENCE


def test_plateau_leaves_the_tail_at_swa_lr():
    schedule = make_schedule_table(make_config(epochs=len(METRICS), swa_start=9, swa_lr=0.02, **PLATEAU), 3)
    go_on(schedule, 3, 0, len(METRICS))
    assert (schedule.table[:27, 0] - torch_plateau_rows(3)[:27]).abs().max() < LARGEST_DIFFERENCE
    assert (schedule.table[27:, 0] == 0.02).all()


def test_an_anneal_after_plateau_starts_where_plateau_ended():
    schedule = make_schedule_table(
        make_config(epochs=len(METRICS), swa_start=9, swa_lr=0.0, swa_anneal=1, **PLATEAU), 4
    )
    go_on(schedule, 4, 0, len(METRICS))
    last = schedule.table[35, 0].item()
    assert last < 0.1
    assert schedule.table[36:40, 0].tolist() == pytest.approx([0.75 * last, 0.5 * last, 0.25 * last, 0.0])
