"""Lookahead: slow weights follow those that are trained, which go on from them; the run ends with the slow ones."""

import pytest
import torch
from comparison import run_with_cuts, same, weights, without_times
from test_step import NO_TAIL, assert_same, recorded  # noqa: F401 (a fixture)
from torch import nn

from fastcifar.optim.lookahead import Lookahead
from fastcifar.optim.schedule_table import make_schedule_table
from fastcifar.training import prepare
from fastcifar.training.loop import train
from fastcifar.training.start import initial_state
from fastcifar.training.step import Step
from fastcifar.training.stopwatch import Stopwatch

SETTINGS = NO_TAIL | {"lookahead": True, "final_div_factor": 4.0}


def share(step, num_steps):
    """What the slow weights keep of themselves."""
    return 0.95**5 * (step / num_steps) ** 3


def test_an_exchange_is_the_formula():
    model = nn.Linear(3, 2)
    lookahead, generator = Lookahead(model, 40), torch.Generator().manual_seed(0)
    slow: dict[str, torch.Tensor] = {}
    for step in range(5, 41, 5):
        for p in model.parameters():
            p.data += torch.randn(p.shape, generator=generator)
        fast = {name: p.detach().double() for name, p in model.named_parameters()}
        a = share(step, 40)
        slow = {name: a * slow[name] + (1 - a) * w for name, w in fast.items()} if slow else fast
        lookahead.add(model)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach().double(), slow[name], rtol=1e-5, atol=1e-6)
            assert torch.equal(p, lookahead.mean[name])
    assert lookahead.count == 8


def test_a_run_is_plain_steps_with_exchanges(make_quick_task, deterministic):
    """The loop of airbench94, save that the first exchange takes the weights as they are."""
    found = train(make_quick_task(**SETTINGS))
    task = make_quick_task(**SETTINGS)
    state = initial_state(task, Stopwatch())
    step, model = Step(task, state, state.model), state.model.train()
    slow: dict[str, torch.Tensor] = {}
    for block in task.executor.blocks(task.plans()):
        step.begin(block)
        for i in range(len(block)):
            step(i)
            state.step += 1
            if state.step % 5 == 0:
                for name, p in model.named_parameters():
                    before = slow.setdefault(name, p.detach().clone())
                    slow[name] = torch.lerp(before, p.detach(), 1 - share(state.step, 24))
                    p.data.copy_(slow[name])
    assert state.step == 24 and found.summary["swa_recorded"] == 4
    for name, p in found.model.named_parameters():
        assert torch.equal(p, slow[name]), name
    last = dict(model.named_parameters())
    assert not torch.allclose(found.model.head.weight, last["head.weight"])  # the steps after the last exchange
    batch_norms = [m for m in found.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(m.num_batches_tracked) for m in batch_norms} == {8}  # refreshed


def test_exchanges_are_every_five_steps(make_quick_task):
    rates = make_schedule_table(make_quick_task(**SETTINGS).config, 8)
    assert [step for step, averages in enumerate(rates.averages, 1) if averages] == [5, 10, 15, 20]
    assert not any(make_schedule_table(make_quick_task(**NO_TAIL).config, 8).averages)


@pytest.mark.usefixtures("recorded")
def test_a_recorded_run_equals_a_plain_one(make_quick_task, deterministic, recorded, monkeypatch):  # noqa: F811
    task = make_quick_task(**SETTINGS)
    task.executor.max_images = 3 * 32
    fast = train(task)
    assert len(recorded) == 4  # two image sizes, the evaluation, and the refresh
    monkeypatch.setattr(prepare, "make_step", Step)
    assert_same(fast, train(make_quick_task(**SETTINGS)))


def test_a_resumed_run_is_the_uninterrupted_one(make_quick_task, deterministic, tmp_path):
    whole = run_with_cuts(make_quick_task, tmp_path / "a", **SETTINGS)
    again = run_with_cuts(make_quick_task, tmp_path / "b", (3, 5, 12), **SETTINGS)
    assert same(weights(whole), weights(again)) and without_times(whole.history) == without_times(again.history)


def test_a_fixed_first_stage_takes_the_slow_weights_once_and_stays(make_quick_task):
    """An exchange after its end moves it to the slow weights; then both are equal."""
    model = nn.Linear(3, 2)
    lookahead, trained = Lookahead(model, 40), []
    for step in range(5, 41, 5):
        if step < 20:
            model.weight.data += 1
        lookahead.add(model)
        trained.append(model.weight.detach().clone())
    assert all(torch.equal(w, trained[2]) for w in trained[3:])
