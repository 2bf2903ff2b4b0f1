"""On a card: a step makes the host wait for nothing, keeps channels_last, and can be reproduced bit for bit."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make_config, make_dataset, task_of
from torch import Tensor, nn

from fastcifar.augment.dali import has_dali
from fastcifar.augment.executor import Block, Blocks, Executor
from fastcifar.augment.plan import EpochPlan
from fastcifar.training import start
from fastcifar.training import state as state_module
from fastcifar.training.evaluate import Evaluator
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer, RunOutcome, RunView
from fastcifar.training.refresh import Refresh
from fastcifar.training.start import initial_state
from fastcifar.training.step import CapturedStep, make_step
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")

DATASET = make_dataset(2000, 500)


def make_card_task(**settings: Any) -> Task:
    plain: dict[str, Any] = {
        "device": "cuda", "scale": "full", "compile": "off", "augment": "torch", "batch_size": 100, "lr_peak": 0.2,
        "epochs": 3,
    }  # fmt: skip
    config = make_config(**plain | settings)
    return task_of(config, DATASET)


class Fenced(Executor):
    """An executor after whose blocks a hidden wait for the card is no error any more: the end of an epoch may wait."""

    def __init__(self, inner: Executor) -> None:
        self.__dict__ |= inner.__dict__  # images, stream and the size of blocks
        self.inner = inner

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        return type(self.inner).make(self, plan, size_px)  # by the settings of this one

    def blocks(self, plans: Iterable[tuple[EpochPlan, int]]) -> Blocks:
        return FencedBlocks(self, super().blocks(plans).parts)


class FencedBlocks(Blocks):
    """Its blocks."""

    def work_ahead(self) -> None:
        super().work_ahead()
        torch.cuda.set_sync_debug_mode("default")


class Fence(Observer):
    """Makes any hidden wait for the card an error: from the second step of each block until the next one is queued."""

    steps = 0

    def on_step(self, run: RunView) -> None:
        torch.cuda.set_sync_debug_mode("error")
        self.steps += 1


def train_fenced(task: Task, *observers: Observer) -> tuple[RunOutcome, int]:
    """Trains behind the fence; also the number of steps."""
    fence = Fence()
    try:
        return train(replace(task, executor=Fenced(task.executor)), [fence, *observers]), fence.steps
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("max_images", [2000, 700])
@pytest.mark.parametrize(
    ("precision", "optimizer"), [("fp16", "sgd"), ("bf16", "sgd"), ("fp32", "sgd"), ("bf16", "muon")]
)  # not fp16 with muon: GradScaler waits for optimizers that do not skip overflow themselves
def test_no_step_waits_for_the_card(precision, optimizer, max_images):
    task = make_card_task(precision=precision, optimizer=optimizer, swa_every=1, swag_rank=4)
    task.executor.max_images = max_images
    result, steps = train_fenced(task)
    assert steps == task.num_steps == 60
    assert all(torch.isfinite(torch.tensor(row["loss_train"])) for row in result.history)
    assert result.history[-1]["loss_train"] < result.history[0]["loss_train"]


class Waiting(Observer):
    """Reads a number back from the card after each step."""

    def on_step(self, run: RunView) -> None:
        torch.ones((), device="cuda").item()


def test_the_fence_notices_a_wait():
    with pytest.raises(RuntimeError, match="synchronizing"):
        train_fenced(make_card_task(precision="bf16"), Waiting())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("network", ["resnet9", "resnet18"])
def test_every_convolution_sees_channels_last(network, precision):
    task = make_card_task(network=network, precision=precision, epochs=0.1)
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            seen.extend((*inputs, output))

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        train(task)
    finally:
        handle.remove()
    assert {t.dtype for t in seen} == {task.hardware.dtype}
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)


def test_equal_seeds_agree_bit_for_bit(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(True)

    def run(seed: int) -> RunOutcome:
        task = make_card_task(precision="bf16", seed=seed, low_res_px=24, low_res_until=0.5, deterministic=True)
        return train(task)

    try:
        first, second, other = run(3), run(3), run(4)
    finally:
        torch.use_deterministic_algorithms(False)
    a, b, c = (r.model.state_dict() for r in (first, second, other))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r["loss_train"] for r in first.history] == [r["loss_train"] for r in second.history]
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_card_and_cpu_agree_in_fp32(exact_fp32):
    """The same seed on both: the first losses differ by rounding alone."""
    settings: dict[str, Any] = {"scale": "small", "precision": "fp32", "epochs": 0.1, "swa_start": None,
                                "lr_peak": 0.01}  # fmt: skip
    here = train(make_card_task(device="cpu", **settings))
    there = train(make_card_task(**settings))
    assert there.history[0]["loss_train"] == pytest.approx(here.history[0]["loss_train"], rel=1e-3)


@pytest.mark.timeout(600)  # a cold compile takes most of it
def test_compiled_run_trains_as_the_plain_one():
    plain = train(make_card_task(precision="bf16", epochs=1))
    compiled = train(make_card_task(precision="bf16", epochs=1, compile="default"))
    assert compiled.summary["compile"] == "default"
    assert compiled.history[0]["loss_train"] == pytest.approx(plain.history[0]["loss_train"], rel=0.1)
    assert not any("_orig_mod" in key for key in compiled.model.state_dict())


@pytest.mark.parametrize("augment", ["torch", pytest.param("dali", marks=needs_dali)])
@pytest.mark.parametrize(("tail", "max_images"), [(2 / 3, 2000), (None, 2000), (2 / 3, 700)])
def test_a_recorded_step_trains_as_the_plain_one(tail, max_images, augment):
    """Two image sizes, a tail and evaluations between the replays; in fp32, so that rounding does not hide a fault.

    A block is the whole epoch of 20 steps, or 7, 7 and 6 of them.
    """
    settings: dict[str, Any] = {"precision": "fp32", "optimizer": "muon", "lr_peak": 0.05, "low_res_px": 24,
                                "low_res_until": 0.4, "swa_start": tail}  # fmt: skip
    settings |= {"swa_every": 2} if tail else {}
    task = make_card_task(augment=augment, **settings)
    task.executor.max_images = max_images
    plain, recorded = train(make_card_task(cuda_graph=False, **settings)), train(task)
    losses = [[row["loss_train"] for row in result.history] for result in (plain, recorded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert plain.history[-1]["lr"] == recorded.history[-1]["lr"]


def test_a_block_is_the_whole_epoch_where_memory_allows():
    task = make_card_task(precision="bf16")
    assert [len(block) for block in task.executor.blocks(task.plans())] == [task.steps_per_epoch] * 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_a_step_is_recorded_and_not_given_up(caplog, optimizer, precision):
    task = make_card_task(precision=precision, optimizer=optimizer)
    state = initial_state(task, Stopwatch(task.hardware.device))
    assert type(make_step(task, state, state.model)) is CapturedStep, caplog.messages


def test_fp16_overflow_is_skipped_inside_the_graph(monkeypatch):
    """As many steps as op by op, and never weights that are not finite."""
    for module in (start, state_module):
        monkeypatch.setattr(module, "FIRST_LOSS_SCALE", 2.0**34)
    settings: dict[str, Any] = {"precision": "fp16", "optimizer": "muon", "lr_peak": 0.05}
    plain, recorded = (train(make_card_task(cuda_graph=graph, **settings)) for graph in (False, True))
    assert 0 < recorded.summary["steps_skipped_fp16"] < recorded.summary["num_steps"]
    assert abs(recorded.summary["steps_skipped_fp16"] - plain.summary["steps_skipped_fp16"]) <= 1
    assert all(p.isfinite().all() for p in recorded.model.parameters())


@pytest.mark.parametrize(("tta", "share"), [("flip", 1.0), ("flip-shift", 0.25)])
def test_a_recorded_evaluation_counts_as_the_plain_one(caplog, tta, share):
    task = make_card_task(precision="bf16", optimizer="muon", epochs=1, tta=tta, tta_share=share)
    trained = train(task).model.state_dict()
    state = initial_state(task, Stopwatch(task.hardware.device))
    step = make_step(task, state, state.model)
    recorded, plain = Evaluator(task, state.model, step.capture), Evaluator(task, state.model)
    assert len(recorded.captured) == 2, caplog.messages
    for weights in (trained, state.model.state_dict(), trained):
        state.model.load_state_dict(weights)
        assert recorded(task.test, tta, share) == pytest.approx(plain(task.test, tta, share), abs=0.01)


def test_a_recorded_refresh_gives_the_statistics_of_the_plain_one(caplog, exact_fp32):
    task = make_card_task(precision="fp32", optimizer="muon", epochs=1)
    states = [initial_state(task, Stopwatch(task.hardware.device)) for _ in range(2)]
    recorder = make_step(task, states[0], states[0].model).capture
    recorded, plain = Refresh(task, states[0], recorder), Refresh(task, states[1])
    assert recorded.replay, caplog.messages
    for refresh in (recorded, plain):
        refresh()
    for mine, theirs in zip(*(state.model.buffers() for state in states), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
