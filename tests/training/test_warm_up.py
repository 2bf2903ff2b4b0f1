"""The warm-up: every shape is compiled and run once beforehand, and nothing of the run is changed by it."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from comparison import same, weights
from torch import nn

from bench.harness import random_dataset
from fastcifar.training import evaluate
from fastcifar.training import task as task_module
from fastcifar.training.loop import train
from fastcifar.training.prepare import warm_up
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.fixture
def compiled_by(monkeypatch):
    """Makes nn.Module.compile use a given backend instead of the C++ compiler."""

    def use(backend: Any) -> None:
        compile_ = nn.Module.compile

        def compile_by_it(self: nn.Module, mode: str, dynamic: bool) -> None:
            compile_(self, backend=backend, dynamic=dynamic)

        monkeypatch.setattr(nn.Module, "compile", compile_by_it)

    yield use
    torch._dynamo.reset()


def no_images(*args):
    raise AssertionError("the warm-up asked for real images")


def broken_compiler(graph, inputs):
    raise RuntimeError("no C++ compiler here\na second line")


@pytest.mark.parametrize(("backend", "compiled"), [("eager", "default"), (broken_compiler, "off")])
def test_warm_up_changes_nothing_and_draws_no_image(make_quick_task, monkeypatch, compiled_by, backend, compiled):
    compiled_by(backend)
    task = make_quick_task(compile="default", low_res_px=16, low_res_until=0.5)
    state = initial_state(task, Stopwatch())
    task.executor.make = no_images
    monkeypatch.setattr(task_module, "draw_plan", no_images)
    monkeypatch.setattr(evaluate, "all_logits", no_images)
    before, random = state_of(state.model), torch.get_rng_state()
    assert warm_up(task, state.model) == compiled
    assert same(state.model.state_dict(), before)
    assert list(state.model.state_dict()) == list(before)  # plain keys
    assert all(p.grad is None for p in state.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(s["momentum_buffer"].any() for o in state.optimizers for s in o.state.values())
    assert state.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_warm_up_runs_every_shape_of_the_run(make_quick_task, compiled_by):
    compiled_by("eager")
    task = make_quick_task(compile="default", low_res_px=16, low_res_until=0.5)
    state, shapes = initial_state(task, Stopwatch()), []
    state.model.register_forward_pre_hook(lambda m, x: shapes.append((m.training, *x[0].shape)))
    warm_up(task, state.model)
    assert sorted(shapes) == [(False, 80, 3, 32, 32), (True, 32, 3, 16, 16), (True, 32, 3, 32, 32)]


def test_nothing_is_warmed_on_a_cpu_without_compiling(make_quick_task):
    task = make_quick_task()
    state = initial_state(task, Stopwatch())
    state.model.register_forward_pre_hook(no_images)
    assert warm_up(task, state.model) == "off"


def test_each_image_size_is_compiled_for_itself(make_quick_task, monkeypatch):
    asked: dict[str, Any] = {}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: asked.update(settings))
    task = make_quick_task(compile="default")
    warm_up(task, initial_state(task, Stopwatch()).model)
    assert asked == {"mode": "default", "dynamic": False}


@pytest.mark.parametrize("deterministic_run", [False, True])
def test_cudnn_times_its_kernels_in_the_warm_up_unless_deterministic(make_quick_task, monkeypatch, deterministic_run):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic_run)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic_run)
    task = make_quick_task()
    on_card = replace(task, hardware=replace(task.hardware, device=torch.device("cuda")))
    with pytest.raises((RuntimeError, AssertionError)):  # there is no card to run the shapes on
        warm_up(on_card, nn.Linear(1, 1))
    assert torch.backends.cudnn.benchmark is not deterministic_run


def test_a_compiled_run_equals_a_plain_one(make_quick_task, compiled_by):
    """On images without a flat area: of equal pixels the compiled maximum takes one, the plain one all."""
    images = random_dataset(256, 80)
    plain = train(make_quick_task(images, epochs=1.5, tta="flip"))
    compiled_by("eager")
    compiled = train(make_quick_task(images, epochs=1.5, tta="flip", compile="default"))
    assert compiled.summary["compile"] == "default"
    assert same(weights(plain), weights(compiled))


def test_a_failing_compiler_costs_one_line(make_quick_task, compiled_by, said):
    compiled_by(broken_compiler)
    result = train(make_quick_task(epochs=1, compile="default"))
    told = [line for line in said if "compile" in line]
    assert len(told) == 1 and "no C++ compiler here" in told[0] and len(told[0]) < 250
    assert "going on without it" in told[0] and "\n" not in told[0]
    assert result.summary["compile"] == "off"  # the record says what really ran
    assert same(weights(result), weights(train(make_quick_task(epochs=1))))
