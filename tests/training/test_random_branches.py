"""Runs of shakeshake26 and shakedrop: their draws follow the steps of the run and nothing else."""

import copy

import pytest
from comparison import same
from torch import nn

from fastcifar.training import prepare
from fastcifar.training.loop import train
from fastcifar.training.prepare import warm_up
from fastcifar.training.start import initial_state
from fastcifar.training.step import CapturedStep
from fastcifar.training.stopwatch import Stopwatch

NETWORKS = ("shakeshake26", "shakedrop")


def again(work):
    """Repeats the device work, as a CUDA graph would."""
    work()
    return work


@pytest.mark.parametrize("network", NETWORKS)
def test_warm_up_and_recording_leave_the_draws_alone(make_quick_task, monkeypatch, network):
    task = make_quick_task(network=network, compile="default", low_res_px=16, low_res_until=0.5)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: None)
    state = initial_state(task, Stopwatch())
    before = copy.deepcopy(state.model.state_dict())
    warm_up(task, state.model)
    assert same(before, state.model.state_dict()) and before["noise.step"] == 0
    CapturedStep(task, state, state.model, again)
    assert same(before, state.model.state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_draws_of_a_run_follow_its_steps(make_quick_task, network):
    result = train(make_quick_task(network=network, epochs=1, swa_start=None))
    assert result.model.noise.step == result.summary["num_steps"] == 8  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_recorded_run_draws_the_same(make_quick_task, deterministic, monkeypatch, network):
    settings = {"network": network, "optimizer": "muon", "epochs": 2, "low_res_px": 16, "low_res_until": 0.5}
    plain = train(make_quick_task(**settings))

    def make_step(task, state, forward):
        graphed = CapturedStep(task, state, forward, again)
        graphed.table = graphed.table.double()  # as a plain step, which does not round its rates
        return graphed

    monkeypatch.setattr(prepare, "make_step", make_step)
    assert same(plain.model.state_dict(), train(make_quick_task(**settings)).model.state_dict())
