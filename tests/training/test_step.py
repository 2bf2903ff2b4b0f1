"""The recorded step does what the plain one does: proved on the CPU by a recorder that repeats the work itself."""

import copy
from dataclasses import replace

import pytest
import torch
from comparison import stop_at_step
from conftest import Recorder, train_in_folder
from replays import same_addresses

from fastcifar.augment.dali import DaliExecutor, has_dali
from fastcifar.augment.executor import Block, TorchExecutor
from fastcifar.observers.checkpoints import Interrupted
from fastcifar.optim.optimizers import Muon, set_row
from fastcifar.training import prepare, start, step, summary
from fastcifar.training import state as state_module
from fastcifar.training.loop import train
from fastcifar.training.start import initial_state
from fastcifar.training.state import FIRST_LOSS_SCALE
from fastcifar.training.step import CapturedStep, Step, make_step
from fastcifar.training.stopwatch import Stopwatch

NO_TAIL = {"optimizer": "muon", "lr_peak": 0.1, "bias_lr_scale": 5.0, "head_lr_scale": 5.0, "low_res_px": 24,
           "low_res_until": 0.4, "swa_start": None}  # fmt: skip
MUON = NO_TAIL | {"swa_start": 2 / 3, "swa_lr": 0.02}

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")


def again(work):
    return work


@pytest.fixture
def recorded(monkeypatch):
    """Runs take the recorded step, on the CPU; the list gets one entry per recording.

    A replay fails where it finds a buffer elsewhere than the recording did: a CUDA graph would not follow it.
    """
    recordings = []

    def recorder(work):
        recordings.append(work)
        return same_addresses(work)

    monkeypatch.setattr(prepare, "make_step", lambda task, state, forward: ExactRates(task, state, forward, recorder))
    return recordings


class ExactRates(CapturedStep):
    """Does not round the rates, as a plain step does not."""

    def _rehearse(self):
        self.table = self.table.double()
        if self.factors is not None:
            factor, steps = self.state.rates.cooling.factor, range(self.task.num_steps)
            self.factors = torch.tensor([factor(step) for step in steps], dtype=torch.float64)
        super()._rehearse()


def assert_same(a, b):
    """Weights and metrics, bit for bit."""
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name
    without_times = [[{k: v for k, v in row.items() if k != "time_s"} for row in r.history] for r in (a, b)]
    assert without_times[0] == without_times[1]


@pytest.mark.parametrize("settings", [MUON, NO_TAIL, MUON | {"epochs": 2.5, "low_res_until": 0.9},
                         NO_TAIL | {"train_stem": "low-res"}],
                         ids=["tail", "no-tail", "fraction", "stem"])  # fmt: skip
def test_a_recorded_run_equals_a_plain_one(make_quick_task, deterministic, recorded, monkeypatch, settings):
    task = make_quick_task(**settings)
    task.executor.max_images = 3 * 32  # blocks of three steps, the last of an epoch of two
    fast = train(task)
    monkeypatch.setattr(prepare, "make_step", Step)
    plain = train(make_quick_task(**settings))
    has_tail = settings["swa_start"] is not None
    assert len(recorded) == 3 + has_tail  # one per image size, not one per step, the evaluation, and the refresh
    assert_same(fast, plain)


def test_the_loss_is_the_smoothed_cross_entropy(make_quick_task):
    task = make_quick_task(label_smoothing=0.2)
    state, logits = initial_state(task, Stopwatch()), []
    plain = Step(task, state, lambda x: logits.append(state.model(x)) or logits[-1])
    y = torch.arange(10).repeat(2)
    plain.update(torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)), y)
    log_p = logits[0].detach().double().log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(20), y] + 0.2 * log_p.mean(1)).mean()
    assert state.loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)


class OutOfOrder(TorchExecutor):
    """Its blocks lie in an order of their own, another one in each block, as DALI's do."""

    def make(self, plan, size_px):
        block = super().make(plan, size_px)
        order = torch.randperm(len(block.labels), generator=torch.Generator().manual_seed(int(plan.index.sum())))
        rows = order.argsort().view(plan.index.shape)
        return Block(block.images[order], block.labels[order], rows, block.num_steps)


@pytest.mark.parametrize("kind", [OutOfOrder, pytest.param(DaliExecutor, marks=needs_dali)])
def test_a_recorded_step_finds_its_images_in_any_order(make_quick_task, deterministic, recorded, monkeypatch, kind):
    def run():
        task = make_quick_task(**NO_TAIL)
        return train(replace(task, executor=kind(task.executor.images, max_images=3 * 32)))

    fast = run()
    monkeypatch.setattr(prepare, "make_step", Step)
    assert_same(fast, run())


def test_fp16_is_recorded_with_its_loss_scale(make_quick_task, deterministic, recorded, monkeypatch):
    """Overflows of the rehearsal do not count, those of the run skip the same steps."""
    for module in (start, state_module, summary):
        monkeypatch.setattr(module, "FIRST_LOSS_SCALE", 2.0**28)
    tasks = [make_quick_task(**MUON) for _ in range(2)]
    fast, plain = (replace(task, hardware=replace(task.hardware, dtype=torch.float16)) for task in tasks)
    fast = train(fast)
    monkeypatch.setattr(prepare, "make_step", Step)
    plain = train(plain)
    assert 0 < fast.summary["steps_skipped_fp16"] == plain.summary["steps_skipped_fp16"] < 24
    assert_same(fast, plain)


def test_the_size_of_blocks_changes_nothing(make_quick_task, deterministic):
    whole = train(make_quick_task(**MUON, cutout_px=8)).model.state_dict()
    for max_images in (100, 256, 10_000):  # on a CPU the default is those of a step, 32
        task = make_quick_task(**MUON, cutout_px=8)
        task.executor.max_images = max_images
        result = train(task).model.state_dict()
        assert all(torch.equal(v, result[name]) for name, v in whole.items()), max_images


def test_a_recorded_run_is_resumed(make_quick_task, deterministic, recorded, tmp_path):
    whole = train(make_quick_task(**MUON))
    recorder = Recorder()
    with pytest.raises(Interrupted):
        train_in_folder(make_quick_task(**MUON), tmp_path, stop_at_step(recorder, 11), recorder)
    resumed = train_in_folder(make_quick_task(**MUON, resume=str(tmp_path)), tmp_path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_recording_leaves_the_state_as_it_was(make_quick_task):
    task = make_quick_task(**MUON)
    state = initial_state(task, Stopwatch())
    state.model.eval()
    before = copy.deepcopy(state.tree())
    CapturedStep(task, state, state.model, again)
    after = state.tree()
    assert not state.model.training
    assert after["step"] == before["step"] == 0 and after["loss_sum"] == before["loss_sum"]
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    for mine, theirs in zip(before["optimizers"], after["optimizers"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_rates_are_read_where_the_run_goes_on(make_quick_task):
    """Not from row 0, and anew in each epoch: the plateau rule rewrites rows to come."""
    task = make_quick_task(**MUON)
    task.executor.max_images = 64
    state = initial_state(task, Stopwatch())
    graphed = CapturedStep(task, state, state.model, again)
    seen = []
    state.step = 5
    state.rates.table[6, 0] = 0.0123
    graphed.begin(Block(torch.zeros(64, 24, 24, 3), torch.zeros(64, dtype=torch.long), rows=None, num_steps=2))
    graphed.update = lambda x, y: seen.append(float(state.optimizers[0].param_groups[0]["lr"]))  # type: ignore[method-assign]
    graphed(0)
    graphed(1)
    assert seen == pytest.approx([state.rates.table[5, 0].item(), 0.0123])


def test_rates_are_read_anew_with_each_block(make_quick_task):
    """Also in the second block: the plateau rule rewrites the table after every epoch."""
    task = make_quick_task(**MUON)
    state = initial_state(task, Stopwatch())
    graphed, seen = CapturedStep(task, state, state.model, again), []
    graphed.update = lambda x, y: seen.append(float(state.optimizers[0].param_groups[0]["lr"]))  # type: ignore[method-assign]
    for lr in (0.01, 0.02, 0.03):
        state.rates.table[state.step, 0] = lr
        graphed.begin(Block(torch.zeros(32, 24, 24, 3), torch.zeros(32, dtype=torch.long), rows=None, num_steps=1))
        graphed(0)
        state.step += 1
    assert seen == pytest.approx([0.01, 0.02, 0.03])


def test_what_cannot_be_recorded_is_not(make_quick_task):
    """Not on a CPU, whatever the other settings."""
    assert not make_quick_task(**MUON).can_capture
    assert type(make_step(make_quick_task(**MUON), None, None)) is Step  # type: ignore[arg-type]


def test_a_recording_that_fails_costs_one_line(make_quick_task, monkeypatch, said):
    def fails():
        raise RuntimeError("operation not permitted when\nstream is capturing")

    monkeypatch.setattr(step, "CudaGraphs", fails)
    task = make_quick_task(**MUON)
    assert type(make_step(replace(task, can_capture=True), initial_state(task, Stopwatch()), None)) is Step  # type: ignore[arg-type]
    (line,) = said
    assert "stream is capturing" in line and "going on without it" in line and "\n" not in line


class FailsInTheMiddle:
    """Repeats the first image size's work, and fails in the second's, after the work has changed the state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, work):
        self.calls += 1
        work()
        if self.calls == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return work


def fails_in_the_second_rehearsal(monkeypatch):
    """Out of memory at the second image size, as on a card that is too small for it."""
    plain = CapturedStep.at_next_row

    def at_next_row(self, size, fixed):
        plain(self, size, fixed)
        if size == 32:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CapturedStep, "at_next_row", at_next_row)


def test_an_update_that_fails_leaves_no_loss_scale_behind(make_quick_task, monkeypatch):
    """GradScaler lends its scale to the optimizer: the next step would multiply by it again."""
    task = make_quick_task(**MUON)
    task = replace(task, hardware=replace(task.hardware, dtype=torch.float16))
    state = initial_state(task, Stopwatch())
    monkeypatch.setattr(step, "CudaGraphs", lambda: again)
    with monkeypatch.context() as failing:
        failing.setattr(Muon, "update", lambda self: torch.linalg.inv(torch.zeros(2, 2)))  # a RuntimeError
        plain = make_step(replace(task, can_capture=True), state, state.model)
    assert type(plain) is Step and state.scaler.get_scale() == FIRST_LOSS_SCALE
    twin = initial_state(task, Stopwatch())
    for other in (plain, Step(task, twin, twin.model)):
        set_row(other.state.optimizers, 0.1, 0.9)
        other.update(torch.ones(4, 3, 32, 32), torch.arange(4))
    for mine, theirs in zip(state.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("where", ["recording", "rehearsal"])
@pytest.mark.parametrize("settings", [MUON, MUON | {"optimizer": "sgd"}], ids=["muon", "sgd"])
def test_a_recording_that_fails_in_its_middle_leaves_no_trace(make_quick_task, monkeypatch, where, settings):
    recorder = FailsInTheMiddle()
    monkeypatch.setattr(step, "CudaGraphs", lambda: recorder)
    if where == "rehearsal":
        fails_in_the_second_rehearsal(monkeypatch)
    task = make_quick_task(**settings)
    state = initial_state(task, Stopwatch())
    before = copy.deepcopy(state.tree())
    assert type(make_step(replace(task, can_capture=True), state, state.model)) is Step
    after = state.tree()
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    assert all(torch.equal(a, b) for a, b in zip(before["optimizers"][0], after["optimizers"][0], strict=True))
    assert after["loss_sum"] == before["loss_sum"] == 0
    assert all(p.grad is None for p in state.model.parameters())  # the next step would add to them
