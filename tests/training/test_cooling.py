"""The first stage cools: its rate falls in a line to 0, then it is fixed, in plain and in recorded steps."""

from dataclasses import replace

import pytest
import torch
from comparison import run_with_cuts, same, weights, without_times
from test_step import NO_TAIL, assert_same, recorded  # noqa: F401 (a fixture)

from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model
from fastcifar.optim.cooling import NO_COOLING, Cooling, make_cooling
from fastcifar.optim.optimizers import make_optimizers
from fastcifar.training import fixed_parts, prepare
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer
from fastcifar.training.processes import World
from fastcifar.training.start import initial_state
from fastcifar.training.step import Step
from fastcifar.training.stopwatch import Stopwatch

FIRST, END = 6, 14  # of 24 steps
COOLED = {"cool_first_stage": (0.25, 0.6)}
MUON = NO_TAIL | COOLED | {"swa_start": 2 / 3, "swa_lr": 0.02}
SGD = COOLED | {"swa_start": None, "lr_peak": 0.05, "weight_decay": 1e-3, "bias_lr_scale": 3.0}


def factor(step):
    """1 up to `FIRST`, 0 from `END` on, a line between."""
    return min(1.0, max(0.0, (END - step) / (END - FIRST)))


def is_cooled(name):
    return name.startswith(("stem.", "stages.0."))


def test_the_rate_falls_in_a_line():
    cooling = Cooling(FIRST, END)
    assert [cooling.factor(step) for step in range(24)] == [factor(step) for step in range(24)]
    assert [cooling.is_over(step) for step in (0, END - 1, END, 23)] == [False, False, True, True]
    assert [Cooling(5, 5).factor(step) for step in (4, 5)] == [1.0, 0.0]
    assert Cooling().factor(10**9) == 1.0


class Watch(Observer):
    """Weights and rates after each step."""

    def __init__(self):
        self.weights, self.rates = [], []

    def on_step(self, state):
        self.weights.append({name: p.detach().clone() for name, p in state.model.named_parameters()})
        names = {p: name for name, p in state.model.named_parameters()}
        self.rates.append({names[p]: group["lr"] for optimizer in state.optimizers for group in optimizer.param_groups
                           for p in group["params"]})  # fmt: skip


@pytest.mark.parametrize("settings", [MUON, SGD], ids=["muon", "sgd"])
def test_the_first_stage_is_fixed_from_its_end_on(make_quick_task, settings):
    task, watch = make_quick_task(**settings), Watch()
    train(task, [watch])
    trained = {name for name, p in task.network.named_parameters() if p.requires_grad}
    assert any(map(is_cooled, trained))
    for step in range(1, 24):
        for name in trained:
            stays = torch.equal(watch.weights[step][name], watch.weights[step - 1][name])
            assert stays == (is_cooled(name) and step >= END), (step, name)
    lr = initial_state(task, Stopwatch()).rates.table[:, 0].tolist()
    scales = {"head.weight": task.config.optimizer.head_lr_scale}
    for step, rates in enumerate(watch.rates):
        assert rates.keys() == trained
        for name, rate in rates.items():
            scale = scales.get(name, task.config.optimizer.bias_lr_scale if name.endswith("bias") else 1.0)
            assert rate == pytest.approx(lr[step] * scale * (factor(step) if is_cooled(name) else 1.0)), (step, name)


def test_the_steps_are_those_of_sgd_with_the_smaller_rate(make_quick_task):
    """A loop of its own with torch's SGD, a group for each weight, no weight fixed: at rate 0 they stay, too."""
    task, watch = make_quick_task(**SGD), Watch()
    train(task, [watch])
    model, config = initial_state(task, Stopwatch()).model, task.config.optimizer
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decay = {name: config.weight_decay * (p.ndim > 1) for name, p in named.items()}
    groups = [{"params": [p], "weight_decay": decay[name]} for name, p in named.items()]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    rates, step = initial_state(task, Stopwatch()).rates, 0
    for block in task.executor.blocks(task.plans()):
        for i in range(len(block)):
            x, y = block.batch(i)
            for name, group in zip(named, sgd.param_groups, strict=True):
                lr, group["momentum"] = rates[step]
                scale = 3.0 if name.endswith("bias") else 1.0
                group["lr"] = lr * scale * (factor(step) if is_cooled(name) else 1.0)
            sgd.zero_grad()
            task.loss(model.train()(x), y).backward()
            sgd.step()
            for name, p in named.items():
                torch.testing.assert_close(watch.weights[step][name], p.detach(), rtol=1e-3, atol=1e-5, msg=name)
            step += 1
    assert step == 24


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("settings", [MUON, MUON | {"epochs": 2.5, "low_res_until": 0.9, "train_stem": "low-res"}],
                         ids=["at full size", "at both sizes"])  # fmt: skip
def test_a_recorded_run_equals_a_plain_one(make_quick_task, deterministic, recorded, monkeypatch, settings):  # noqa: F811
    task = make_quick_task(**settings)
    task.executor.max_images = 3 * 32  # the end is inside a block
    fast = train(task)
    monkeypatch.setattr(prepare, "make_step", Step)
    plain = train(make_quick_task(**settings))
    fixed_sizes = 2 if "epochs" in settings else 1
    assert len(recorded) == 2 + fixed_sizes + 2  # forms with and without the first stage, evaluation, refresh
    assert_same(fast, plain)


@pytest.mark.parametrize("settings", [MUON, SGD], ids=["muon", "sgd"])
def test_a_resumed_run_is_the_uninterrupted_one(make_quick_task, deterministic, tmp_path, settings):
    whole = run_with_cuts(make_quick_task, tmp_path / "a", **settings)
    again = run_with_cuts(make_quick_task, tmp_path / "b", (FIRST + 3, END, END + 2), **settings)
    assert same(weights(whole), weights(again)) and without_times(whole.history) == without_times(again.history)


def test_the_arithmetic_is_counted_by_step(make_quick_task):
    task, plain = (make_quick_task(low_res_px=24, low_res_until=0.7, **settings) for settings in (COOLED, {}))
    model = plain.network
    whole = {size: train_flop(model, size) for size in (24, 32)}
    model.first_stage_fixed = True
    less = {size: train_flop(model, size) for size in (24, 32)}
    assert all(less[size] < whole[size] for size in whole)
    images = 32 * (END * whole[24] + 2 * less[24] + 8 * less[32])  # the first size ends with the second epoch
    assert task.train_pflop == pytest.approx(images / 1e15, rel=1e-12)
    assert task.pflop(END) == plain.pflop(END) and task.pflop(END + 1) < plain.pflop(END + 1)
    assert train(task).summary["train_pflop"] == task.train_pflop


def test_several_processes_drop_the_gradients(make_quick_task):
    """They compute all of them, and the count says so."""
    task = replace(make_quick_task(low_res_px=24, low_res_until=0.4, train_stem="low-res", **COOLED), world=World(0, 2))
    assert task.train_pflop == make_quick_task(low_res_px=24, low_res_until=0.4, train_stem="low-res").train_pflop
    assert fixed_parts.step_forms(task) == [(24, False), (32, False)]
    state = initial_state(make_quick_task(**COOLED), Stopwatch())
    dropped = {}
    for state.step, size in ((END - 1, 24), (END - 1, 32), (END, 24)):
        for p in state.model.parameters():
            p.grad = torch.ones_like(p)
        fixed_parts.drop_gradients(task, state, size)
        dropped[state.step, size] = {name for name, p in state.model.named_parameters() if p.grad is None}
    assert dropped[END - 1, 24] == set()
    assert dropped[END - 1, 32] == {"stem.weight", "stem.bias"}
    assert dropped[END, 24] == {name for name, _ in state.model.named_parameters() if is_cooled(name)}


def test_the_network_leaves_the_run_with_all_of_it_to_train(make_quick_task):
    task = make_quick_task(**MUON, train_stem="low-res")
    assert task.network.stem_fixed_from_px == 32
    model = train(task).model
    model.train()(torch.randn(4, 3, 32, 32)).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"stem.bias", "stages.0.conv1.weight"} <= trained
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("changed", [{"network": "resnet18"}, {"freeze": "all-but-head"}], ids=str)
def test_a_recipe_that_cools_does_not_cool_what_has_no_such_stage(make_quick_task, changed):
    task = make_quick_task(**MUON)
    config = replace(task.config, model=replace(task.config.model, **changed))
    assert make_cooling(config, 8) == NO_COOLING != make_cooling(task.config, 8)
    optimizers = make_optimizers(make_model(config.model, 10, seed=0), config)
    assert not any("cools" in group for optimizer in optimizers for group in optimizer.param_groups)


@pytest.mark.parametrize(("epochs", "end"), [(1, 1), (2, 2), (3, 2)])
def test_fractions_are_within_the_shortest_run(make_quick_task, epochs, end):
    config = make_quick_task(epochs=epochs, swa_start=None, cool_first_stage=(0.6, 0.8)).config
    assert make_cooling(config, steps_per_epoch=1).end == end


@pytest.mark.parametrize(
    ("points", "epochs", "told"),
    [((3.0, 4.0), 3, "from epoch 3 to 4 of 3 epochs"), ((0.9, 1.0), 3, "from epoch 2.7 to 1 of 3 epochs")],
)
def test_points_outside_the_run_are_refused(make_quick_task, points, epochs, told):
    with pytest.raises(ValueError, match=f"cool_first_stage is {told}; choose rising points within the run"):
        train(make_quick_task(epochs=epochs, swa_start=None, cool_first_stage=points))
