"""The refresh of batch norm in a run: its images, and that a recorded one does what the plain one does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastcifar.augment.plan import draw_plan
from fastcifar.training import evaluate, refresh
from fastcifar.training.refresh import Refresh, refresh_plan, refresh_shape
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch


def on_a_card(task):
    return replace(task, hardware=replace(task.hardware, device=torch.device("cuda")))


@pytest.mark.parametrize(
    ("batch_size", "images", "most", "expected"),
    [
        (32, 10_000, 100, (2, 100)),  # 8 steps of 32
        (32, 10_000, 2000, (1, 256)),
        (32, 130, 64, (2, 64)),  # 4 steps
        (128, 10_000, 64, (2, 128)),  # no smaller than a step
        (1000, 10_000, 100, (1, 256)),  # the set
    ],
)
def test_a_card_takes_the_images_in_larger_batches(make_quick_task, monkeypatch, batch_size, images, most, expected):
    monkeypatch.setattr(refresh, "CARD_BATCH", most)
    monkeypatch.setattr(refresh, "REFRESH_IMAGES", images)
    task = make_quick_task(batch_size=batch_size, epochs=3)
    count, size = refresh_shape(task)
    assert size == min(batch_size, 256) and refresh_shape(on_a_card(task)) == expected
    steps = draw_plan(task.config, 256, 3).steps(0, count)
    assert torch.equal(refresh_plan(task).index, steps.index)
    larger = refresh_plan(on_a_card(task))
    num = expected[0] * expected[1]
    for name in steps.__dataclass_fields__:
        assert torch.equal(getattr(larger, name).flatten(), getattr(steps, name).flatten()[:num])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_refresh_equals_a_plain_one(make_quick_task, monkeypatch, precision):
    """Of the weights that the network has when it is replayed; recording it leaves the state as it was."""
    task = make_quick_task(epochs=3, precision=precision)
    state, recorded = initial_state(task, Stopwatch()), []

    def recorder(work):
        recorded.append(work)
        return work

    state.model.eval()
    before = copy.deepcopy(state.tree())
    again = Refresh(task, state, recorder)
    after = state.tree()
    assert len(recorded) == 1 and not state.model.training
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    twin = initial_state(task, Stopwatch())
    for model in (state.model, twin.model):
        torch.manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn(p.shape)
    for _ in range(2):  # the second time it finds the statistics of the first
        again()
        Refresh(task, twin)()
        mine, theirs = state.model.state_dict(), twin.model.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    counts = [m.num_batches_tracked for m in state.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counts == [8] * 7
    assert not all(torch.equal(value, mine[name]) for name, value in before["model"].items() if "running" in name)


@pytest.mark.parametrize("settings", [{"norm": "gn-ws"}, {"swa_start": None}])
def test_nothing_is_recorded_where_nothing_is_refreshed(make_quick_task, settings):
    def refuse(work):
        raise AssertionError("recorded")

    task = make_quick_task(**settings)
    assert Refresh(task, initial_state(task, Stopwatch()), refuse).replay is None


def test_a_recording_that_fails_costs_one_line(make_quick_task, said):
    def fails(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    task = make_quick_task()
    state = initial_state(task, Stopwatch())
    before = copy.deepcopy(state.model.state_dict())
    plain = Refresh(task, state, fails)
    assert plain.replay is None and len(said) == 1 and "the batch-norm refresh" in said[0]
    assert all(torch.equal(value, state.model.state_dict()[name]) for name, value in before.items())
    plain()


def test_evaluation_and_refresh_share_a_batch_size_on_a_card():
    """Then kernels are chosen once for both."""
    assert refresh.CARD_BATCH == evaluate.CARD_BATCH == evaluate.most_at_once(torch.device("cuda"))
