"""--augment auto: DALI where it was measured to cost next to nothing, else torch."""

import pytest
import torch
from conftest import make_config

from fastcifar.training import hardware


@pytest.mark.parametrize(("added_s", "installed", "executor"), [
    (0.0019, True, "dali"),  # of 0.1 s an epoch: 1.9%
    (0.0019, False, "torch"),
    (0.0031, True, "torch"),  # 3.1%
])  # fmt: skip
def test_auto_takes_dali_where_it_costs_at_most_3_percent(monkeypatch, added_s, installed, executor):
    monkeypatch.setitem(hardware.DALI_COSTS, "cuda 9.0", (added_s, 10.0))
    monkeypatch.setattr(hardware, "has_dali", lambda: installed)
    assert hardware.choose_executor("cuda 9.0", pflop_per_epoch=0.01)[0] == executor


def test_auto_is_torch_by_what_was_measured_so_far(monkeypatch):
    monkeypatch.setattr(hardware, "has_dali", lambda: True)
    for pflop in hardware.PFLOP_PER_EPOCH.values():
        name, reason = hardware.choose_executor("cuda 9.0", pflop)
        assert name == "torch" and "when it was measured" in reason
    name, reason = hardware.choose_executor("cuda 99.0", 1.0)
    assert name == "torch" and "python -m bench.loader" in reason


def test_a_chosen_dali_becomes_the_executor_of_the_run(monkeypatch):
    config = make_config(device="cpu", scale="full")
    assert hardware.choose_hardware(config).executor == "torch"
    monkeypatch.setattr(hardware, "has_dali", lambda: True)
    monkeypatch.setattr(hardware, "device_class", lambda device: "cuda 9.0")
    monkeypatch.setitem(hardware.DALI_COSTS, "cuda 9.0", (0.0, 10.0))
    chosen = hardware.choose_hardware(config)
    assert chosen.device == torch.device("cpu") and chosen.executor == "dali" and "3%" in chosen.reasons["augment"]
