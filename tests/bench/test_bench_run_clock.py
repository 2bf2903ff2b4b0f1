"""The clock of a run in a bench: the rest before it, the card's joules, and what is added on a CPU."""

import sys
import types

import pytest
import torch

from bench import harness, run_clock
from bench.run_clock import RunClock, energy_j
from fastcifar.training.stopwatch import Stopwatch

CARD = torch.device("cuda", 0)


class FakeNvml(types.ModuleType):
    """NVML with one card, which uses 250 J between two readings."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts: bool = True) -> None:
        super().__init__("pynvml")
        self.counts, self.used_mj = counts, 10_000_000

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.counts:
            raise self.NVMLError("Not Supported")
        assert handle == "handle"
        self.used_mj += 250_000
        return self.used_mj


@pytest.fixture
def card(monkeypatch):
    """A card as far as this file asks for one. Returns the seconds that were rested."""
    rests: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234"))
    monkeypatch.setattr("fastcifar.training.stopwatch.wait_for", lambda device: None)
    monkeypatch.setattr(run_clock, "rest", rests.append)
    return rests


def run_phases(clock: RunClock) -> None:
    for phase in ("compile", "train", "eval", "train", "swa", "eval"):
        with clock(phase):
            pass


def test_joules_from_the_first_training_phase_to_the_end(monkeypatch, card):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    clock = RunClock(CARD, pause_s=3.0)
    with clock("compile"):
        pass
    assert not card and clock.before_j is None  # the warm-up is not part of it
    run_phases(clock)
    assert card == [3.0]  # once, before the first training phase
    assert clock.joules() == 250.0 and energy_j(CARD) == 10_750.0


@pytest.mark.parametrize("module", [FakeNvml(counts=False), None])
def test_no_joules_without_the_package_or_the_counter(monkeypatch, card, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    clock = RunClock(CARD)
    run_phases(clock)
    assert clock.joules() is None and energy_j(CARD) is None


def test_a_cpu_neither_rests_nor_has_joules(card):
    clock = RunClock(torch.device("cpu"), pause_s=3.0)
    run_phases(clock)
    assert card == [0.0] and clock.joules() is None
    assert isinstance(clock, Stopwatch) and set(clock.time_s) == {"compile", "train", "swa", "eval"}


def test_on_a_cpu_whitening_and_padding_are_measured_beside_the_run(make_quick_task):
    config = make_quick_task(epochs=1).config
    summary = harness.train_once(config, harness.random_dataset(64, 32)).summary
    assert 0 < summary["preparation_s"] < 60 and summary["joules"] is None
