"""The stopwatch: phases, nesting, the device waited for at both ends."""

import re
import time

import pytest
import torch

from fastcifar.runs import environment
from fastcifar.runs.environment import utc_stamp
from fastcifar.training import stopwatch as module
from fastcifar.training.rates import matrix_flop_per_s
from fastcifar.training.stopwatch import PHASES, Stopwatch, process_age_s


class Clock:
    """Stands for time.perf_counter: time passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter", clock)
    return clock


def test_phases_add_up(clock):
    watch = Stopwatch()
    for seconds in (1.0, 2.0):
        with watch("train"):
            clock.now += seconds
        clock.now += 50  # between phases nothing is counted
        with watch("eval"):
            clock.now += 0.5
    assert watch.time_s == {"train": 3.0, "eval": 1.0}


def test_a_phase_inside_another_stops_the_outer_one(clock):
    watch = Stopwatch()
    with watch("train"):
        clock.now += 1
        with watch("eval"):
            clock.now += 10
        clock.now += 2
    assert watch.time_s == {"train": 3.0, "eval": 10.0}


def test_an_error_ends_its_phase(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch("train"):
        clock.now += 1
        raise KeyError
    clock.now += 10
    with watch("eval"):
        clock.now += 1
    assert watch.time_s == {"train": 1.0, "eval": 1.0}


def test_seconds_so_far_look_into_a_running_phase(clock):
    watch = Stopwatch()
    with watch("train"):
        clock.now += 1
        assert watch.seconds("train") == 1.0 and watch.seconds("eval") == 0.0
    assert watch.seconds("train") == 1.0


def test_the_device_is_waited_for_at_both_ends(clock, monkeypatch):
    waits = []
    monkeypatch.setattr(module, "wait_for", lambda device: waits.append((device, clock.now)))
    device = torch.device("cuda", 0)
    with Stopwatch(device)("train"):
        clock.now += 5
    assert waits == [(device, 100.0), (device, 105.0)]


def test_report_has_every_phase_of_the_record(clock):
    watch = Stopwatch()
    with watch("swa"):
        clock.now += 0.123456
    report = watch.report()
    assert set(report) == {*PHASES, "wall"}
    assert report["swa"] == 0.1235 and report["train"] == 0.0 and report["wall"] > 0


def test_age_of_the_process_includes_its_start():
    first = process_age_s()
    time.sleep(0.02)
    assert 0 < first < process_age_s() < 24 * 3600
    assert first > time.monotonic() - module._IMPORTED_AT  # it was there before the module was imported


def test_age_without_proc_counts_from_the_import(monkeypatch):
    def missing(*args):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert process_age_s() == pytest.approx(time.monotonic() - module._IMPORTED_AT, abs=0.5)


def test_rate_of_a_matrix_product(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks) * 0.5)
    rate = matrix_flop_per_s(torch.device("cpu"), torch.float32, side=16)
    assert rate == pytest.approx(2 * 16**3 / 0.5)


def test_stamp_is_utc_and_sorts(monkeypatch):
    assert re.fullmatch(r"\d{8}-\d{6}", utc_stamp())
    monkeypatch.setattr(environment.time, "gmtime", lambda: time.struct_time((2026, 1, 31, 23, 59, 9, 0, 0, 0)))
    assert utc_stamp() == "20260131-235909"
