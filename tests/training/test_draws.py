"""A recorded step on draws: where the stem is not trained, one kernel makes its output from the images as they lie."""

from dataclasses import replace

import pytest
from test_step import MUON, NO_TAIL, assert_same, recorded  # noqa: F401 (a fixture)

from fastcifar.augment.stem import plain_stem
from fastcifar.config.settings import with_settings
from fastcifar.training import fused_step, prepare, step
from fastcifar.training.loop import train
from fastcifar.training.start import initial_state
from fastcifar.training.step import Step
from fastcifar.training.stopwatch import Stopwatch


@pytest.mark.usefixtures("recorded")
def test_a_recorded_run_on_draws_equals_one_on_images(make_quick_task, deterministic, monkeypatch):
    """Where the stem is not trained, a block at 32 pixels holds what is drawn, and the step makes the stem's output."""
    settings = MUON | {"train_stem": "low-res", "cutout_px": 8, "crop_pad_px": 2}
    with monkeypatch.context() as patch:
        kernel_calls = []

        def by_plain_torch(draws, *arguments):
            kernel_calls.append(draws.table.shape)
            return plain_stem(draws, *arguments)

        patch.setattr(step, "makes_images_from_px", lambda task, state: 32)
        patch.setattr(step, "stem", by_plain_torch)
        task = make_quick_task(**settings)
        task.executor.max_images = 3 * 32
        drawn = train(task)
    assert task.executor.draws_from_px == 32 and set(kernel_calls) == {(32, 6)}
    assert len(kernel_calls) == 2 + 16  # the rehearsal, the recording, and two of three epochs
    monkeypatch.setattr(prepare, "make_step", Step)
    assert_same(drawn, train(make_quick_task(**settings)))


def test_draws_are_for_a_fixed_stem_with_kernels_and_torch_alone(make_quick_task, monkeypatch):
    monkeypatch.setattr(fused_step, "works", lambda *arguments: True)

    def from_px(fused=True, executor="torch", **settings):
        task = make_quick_task(**NO_TAIL | settings)
        task = replace(task, config=with_settings(task.config, augment=executor))
        monkeypatch.setattr(fused_step, "is_fused", lambda model: fused)
        return fused_step.makes_images_from_px(task, initial_state(task, Stopwatch()))

    assert from_px(train_stem="low-res") == 32
    assert from_px() is None  # the stem's biases are trained
    assert from_px(train_stem="low-res", fused=False) is None
    assert from_px(train_stem="low-res", executor="dali") is None
