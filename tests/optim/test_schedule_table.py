"""Every row of every schedule is what torch's scheduler gives in the loop that PyTorch's documentation shows."""

from dataclasses import replace

import pytest
import torch
from conftest import make_config
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers
from torch_rows import LARGEST_DIFFERENCE, SIZES, TORCH, documented_loop, throwaway_optimizer

from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedules import PerEpoch, PerStep
from fastcifar.config.settings import with_settings
from fastcifar.optim.plateau_table import PlateauTable
from fastcifar.optim.schedule_table import count_steps, make_schedule_table


@pytest.mark.parametrize("name", TORCH)
def test_rows_equal_torch(name):
    settings, per, build = TORCH[name]
    for epochs, steps_per_epoch in SIZES:
        config = make_config(epochs=epochs, swa_start=None, **settings)
        num_steps = round(epochs * steps_per_epoch)
        optimizer = throwaway_optimizer(config)
        expected = documented_loop(optimizer, build(optimizer, num_steps, epochs), per, steps_per_epoch, num_steps)
        schedule = make_schedule_table(config, steps_per_epoch)
        assert schedule.table.shape == (num_steps, 2) and schedule.table.dtype == torch.float64
        assert schedule.tail_step == num_steps
        assert (schedule.table - expected).abs().max() < LARGEST_DIFFERENCE, (epochs, steps_per_epoch)


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), SIZES)
@pytest.mark.parametrize(("kind", "per"), [(PerStep, "step"), (PerEpoch, "epoch")])
def test_a_schedule_of_your_own_is_lambda_lr(kind, per, epochs, steps_per_epoch):
    own = kind(peak=0.3, factor=lambda i: 0.95**i)
    config = make_config(epochs=epochs, swa_start=None, cycle_momentum=False, momentum=0.8)
    config = replace(config, schedule=own)
    optimizer = throwaway_optimizer(config)
    scheduler = torch_schedulers.LambdaLR(optimizer, lambda i: 0.95**i)
    num_steps = round(epochs * steps_per_epoch)
    expected = documented_loop(optimizer, scheduler, per, steps_per_epoch, num_steps)
    assert expected[0].tolist() == [0.3, 0.8]
    assert (make_schedule_table(config, steps_per_epoch).table - expected).abs().max() < LARGEST_DIFFERENCE


def test_a_schedule_of_your_own_takes_the_place_of_one_that_needs_a_metric():
    config = make_config(epochs=4, swa_start=None, schedule="plateau", val_split=0.1, factor=0.5, patience=1)
    assert isinstance(make_schedule_table(config, 2), PlateauTable)
    schedule = make_schedule_table(replace(config, schedule=PerEpoch(peak=0.1, factor=lambda epoch: 0.5**epoch)), 2)
    for epoch in range(4):
        schedule.end_epoch(2 * (epoch + 1), 0.1)
    assert schedule.table[:, 0].tolist() == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97])
def test_onecycle_without_a_rise(count):
    config = make_config(epochs=1, swa_start=None, pct_start=0.0)
    optimizer = throwaway_optimizer(config)
    scheduler = torch_schedulers.OneCycleLR(optimizer, 1.0, total_steps=count, pct_start=0.0)
    expected = documented_loop(optimizer, scheduler, "step", count, count)
    assert (make_schedule_table(config, count).table - expected).abs().max() < LARGEST_DIFFERENCE


def test_onecycle_whose_rise_is_one_step():
    """Where pct_start * steps rounds to 1 torch divides by zero; then a rise longer by next to nothing is meant."""
    for count in (*range(2, 60), 97, 98, 99, 103, 187, 196, 197):  # 1 / count rounds up, down or not at all
        config = make_config(epochs=1, swa_start=None, pct_start=1 / count)
        optimizer, pct_start = throwaway_optimizer(config), config.schedule.rise
        if pct_start * count == 1:
            pct_start *= 1 + 1e-13
        scheduler = torch_schedulers.OneCycleLR(optimizer, 1.0, total_steps=count, pct_start=pct_start)
        expected = documented_loop(optimizer, scheduler, "step", count, count)
        assert (make_schedule_table(config, count).table - expected).abs().max() < LARGEST_DIFFERENCE, count


@pytest.mark.parametrize(("count", "rise", "hold"), [(60, 0.1, 0.3), (97, 0.25, 0.5), (20, 0.0, 0.4), (10, 0.5, 0.9)])
def test_onecycle_stands_still_at_its_peak(count, rise, hold):
    settings = {"lr_peak": 1.0, "div_factor": 4.0, "final_div_factor": 5.0, "anneal_strategy": "linear"}
    held = {"pct_start": rise, "pct_hold": hold}
    table = make_schedule_table(make_config(epochs=1, swa_start=None, **settings, **held), count).table
    rising = max(2, round(rise * count))
    leaves = rising - 1 + min(round(hold * count), count - rising - 1)  # the last step at the peak
    for t, (lr, momentum) in enumerate(table.tolist()):
        if t < rising:
            high = t / (rising - 1)
            expected = 0.25 + 0.75 * high
        else:
            high = 1 - max(0, t - leaves) / (count - 1 - leaves)
            expected = 0.05 + 0.95 * high
        assert lr == pytest.approx(expected) and momentum == pytest.approx(0.95 - 0.1 * high), t
    assert (table[:, 0] > 1 - 1e-9).sum() == leaves - rising + 2


def test_a_peak_that_is_not_held_is_torchs_own():
    rows = [make_schedule_table(make_config(epochs=3, swa_start=None, **held), 7).table
            for held in ({}, {"pct_hold": 0.0}, {"pct_hold": 0.01})]  # fmt: skip
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])  # a hundredth is no whole step here


def test_onecycle_ends_where_it_should_and_not_past_it():
    table = make_schedule_table(make_config(epochs=10, swa_start=None, lr_peak=1.0), 9).table
    lr, momentum = table.T
    assert lr[0] == pytest.approx(1 / 25) and lr.max() == pytest.approx(1.0)
    assert lr[-1] == lr.min() == pytest.approx(1 / 25 / 1e4)
    assert momentum[0] == pytest.approx(0.95) and momentum[-1] == pytest.approx(0.95)
    assert momentum[lr.argmax()] == momentum.min() == pytest.approx(0.85)


# Momentum is what the table says


@pytest.mark.parametrize("schedule", ["multistep", "step", "cosine", "restarts", "constant", "linear"])
def test_momentum_is_the_configured_one_where_it_does_not_cycle(schedule):
    table = make_schedule_table(make_config(schedule=schedule, epochs=6, momentum=0.7, swa_start=None), 5).table
    assert (table[:, 1] == 0.7).all()


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("schedule", ["onecycle", "cyclic"])
def test_constructors_do_not_overwrite_a_momentum_that_does_not_cycle(schedule, momentum):
    config = make_config(schedule=schedule, epochs=6, momentum=momentum, cycle_momentum=False)
    assert (make_schedule_table(config, 5).table[:, 1] == momentum).all()


# Any values


@given(
    name=st.sampled_from(sorted(TORCH)),
    epochs=st.floats(0.01, 40),
    steps_per_epoch=st.integers(1, 30),
    swa_start=st.none() | st.floats(0, 0.999),
    swa_anneal=st.floats(0, 5),
    lr_peak=st.floats(0, 10),
    pct_start=st.floats(0, 0.999),
)
def test_no_row_is_negative_infinite_or_above_the_peak(
    name, epochs, steps_per_epoch, swa_start, swa_anneal, lr_peak, pct_start
):
    settings = TORCH[name][0] | {"lr_peak": lr_peak, "swa_start": swa_start}
    settings |= {"pct_start": pct_start} if "onecycle" in name else {}
    settings |= {"swa_anneal": swa_anneal} if swa_start is not None else {}
    config = make_config(epochs=epochs, **settings)
    schedule = make_schedule_table(config, steps_per_epoch)
    assert len(schedule.table) == count_steps(epochs, steps_per_epoch) >= 1
    assert 0 <= schedule.tail_step <= len(schedule.table)
    lr, momentum = schedule.table.T
    lowest = [getattr(config.schedule, field, 0) for field in ("base_lr", "eta_min")]
    highest = max(lr_peak, config.tail.lr if config.tail else 0, *lowest)
    assert lr.isfinite().all() and (lr >= 0).all() and (lr <= highest * (1 + 1e-9)).all()
    assert ((momentum >= 0.85 - 1e-9) & (momentum <= 0.95 + 1e-9)).all()


# Epochs and steps


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "steps"),
    [
        (30, 97, 2910),
        (30, 98, 2940),
        (1, 1, 1),
        (0.5, 97, 48),
        (0.001, 5, 1),
        (2.5, 4, 10),
        (1 / 3, 3, 1),
        (0.29, 100, 29),
        (1.79, 97, 174),
    ],  # 28.999999999999996 and 173.63
)
def test_one_converter_from_epochs_to_steps(epochs, steps_per_epoch, steps):
    assert count_steps(epochs, steps_per_epoch) == steps
    assert len(make_schedule_table(make_config(epochs=epochs), steps_per_epoch).table) == steps


@pytest.mark.parametrize("epochs", [20, 40, 50, 60])
@pytest.mark.parametrize("tail", [{}, {"swa_start": 2 / 3}])
def test_warm_restarts_end_low(epochs, tail):
    """A third cycle would begin at the peak where two of a third and two thirds do not fill the run. torch counts whole
    epochs, so that a short run ends higher."""
    table = make_schedule_table(with_settings(RECIPES["restarts60"], epochs=epochs, **tail), 10)
    assert table.table[table.tail_step - 1, 0] < 0.2 * table.table[:, 0].max()


def test_eleven_equal_cycles_of_three_epochs_fill_33():
    table = make_schedule_table(with_settings(RECIPES["restarts60"], epochs=33, t_0=0.1, t_mult=1), 10).table
    assert int((table[::10, 0] == table[0, 0]).sum()) == 11 and table[-1, 0] < 0.3 * table[0, 0]


@pytest.mark.parametrize("steps", [50, 97, 485, 4850])
def test_triangles_fill_the_run(steps):
    """The last one ends near its foot: no further one has begun."""
    rates = make_schedule_table(with_settings(RECIPES["cyclic50"], epochs=1), steps).table[:, 0]
    peaks = (rates[1:-1] > rates[:-2]) & (rates[1:-1] >= rates[2:])
    assert int(peaks.sum()) == 5 and rates[-1] < 0.25 * rates.max()


def test_a_line_ends_at_its_last_rate():
    config = with_settings(RECIPES["cosine50"], schedule="linear", end_factor=0.1, epochs=1)
    assert make_schedule_table(config, 10).table[-1, 0] == pytest.approx(0.1 * config.schedule.peak)
