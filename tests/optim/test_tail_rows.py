"""The averaging tail goes on where the cycle ends, or anneals on its way; a longer run repeats the tail's last row."""

import pytest
import torch
from conftest import make_config
from torch.optim import lr_scheduler as torch_schedulers
from torch_rows import LARGEST_DIFFERENCE, TORCH, documented_loop, throwaway_optimizer

from fastcifar.optim.schedule_table import make_schedule_table, plan_averages
from fastcifar.training.resume import extend


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(30, 97), (3, 5), (7, 4), (4.5, 10)])
def test_cycle_ends_at_swa_lr_without_a_jump(epochs, steps_per_epoch, strategy):
    config = make_config(epochs=epochs, swa_lr=0.2, lr_peak=1.0, anneal_strategy=strategy)
    schedule = make_schedule_table(config, steps_per_epoch)
    assert schedule.tail_step == round(2 / 3 * epochs * steps_per_epoch)
    lr, momentum = schedule.table.T
    assert lr[schedule.tail_step - 1] == pytest.approx(0.2, abs=LARGEST_DIFFERENCE)
    assert (lr[schedule.tail_step :] == 0.2).all()
    assert (momentum[schedule.tail_step :] == momentum[schedule.tail_step - 1]).all()


def test_a_given_final_div_factor_holds_with_a_tail():
    schedule = make_schedule_table(make_config(epochs=6, final_div_factor=100.0), 5)
    assert schedule.table[schedule.tail_step - 1, 0] == pytest.approx(1 / 25 / 100)


def test_rows_before_the_tail_are_those_of_a_shorter_run():
    with_tail = make_schedule_table(make_config(epochs=30, final_div_factor=1e4), 7)
    alone = make_schedule_table(make_config(epochs=20, final_div_factor=1e4, swa_start=None), 7)
    assert torch.equal(with_tail.table[: with_tail.tail_step], alone.table)


def test_twenty_epochs_of_onecycle_then_ten_at_a_constant_rate():
    config = make_config(epochs=30, lr_peak=0.1, swa_start=20, swa_lr=0.01, final_div_factor=1e4)
    schedule = make_schedule_table(config, 10)
    optimizer = throwaway_optimizer(config)
    cycle = torch_schedulers.OneCycleLR(optimizer, 0.1, total_steps=200)
    expected = documented_loop(optimizer, cycle, "step", 10, 200)
    assert schedule.tail_step == 200
    assert (schedule.table[:200] - expected).abs().max() < LARGEST_DIFFERENCE
    assert (schedule.table[200:, 0] == 0.01).all() and (schedule.table[200:, 1] == expected[-1, 1]).all()


def test_anneal_moves_linearly_over_epochs_not_over_calls():
    config = make_config(epochs=10, schedule="constant", lr_peak=1.0, swa_start=5, swa_lr=0.2, swa_anneal=2)
    lr = make_schedule_table(config, 4).table[:, 0]
    assert (lr[:20] == 1.0).all()
    assert lr[20:28].tolist() == pytest.approx([1.0 - 0.1 * k for k in range(1, 9)])
    assert (lr[28:] == 0.2).all()


def test_an_anneal_longer_than_the_tail_stops_on_its_way():
    config = make_config(epochs=4, schedule="constant", lr_peak=1.0, swa_start=3, swa_lr=0.0, swa_anneal=2)
    assert make_schedule_table(config, 2).table[-2:, 0].tolist() == pytest.approx([0.75, 0.5])


def test_tail_momentum_can_be_set():
    schedule = make_schedule_table(make_config(epochs=6, swa_momentum=0.5), 5)
    assert (schedule.table[schedule.tail_step :, 1] == 0.5).all()
    assert (schedule.table[: schedule.tail_step, 1] >= 0.85).all()


@pytest.mark.parametrize("name", TORCH)
def test_any_schedule_takes_a_tail(name):
    settings, _, _ = TORCH[name]
    with_tail = make_schedule_table(make_config(epochs=9, swa_start=6, swa_lr=0.03, **settings), 4)
    assert with_tail.tail_step == 24
    assert (with_tail.table[24:, 0] == 0.03).all()
    assert (with_tail.table[24:, 1] == with_tail.table[23, 1]).all()


def test_a_run_that_is_all_tail():
    schedule = make_schedule_table(make_config(epochs=2, swa_start=0.0, swa_lr=0.03, momentum=0.7), 4)
    assert schedule.tail_step == 0
    assert (schedule.table == torch.tensor([0.03, 0.7], dtype=torch.float64)).all()


def test_anneal_below_one_is_a_fraction_of_the_run():
    settings = {"epochs": 20, "schedule": "constant", "lr_peak": 1.0, "swa_start": 0.75, "swa_lr": 0.0}
    fraction, epochs = (make_schedule_table(make_config(swa_anneal=a, **settings), 5).table for a in (0.15, 3))
    assert torch.equal(fraction, epochs) and fraction[-1, 0] == 0 and (fraction[:, 0] > 0).sum() == 75 + 14


# The third column: after which steps the weights join the average


def joins(rates):
    """Steps after which the weights join, counted from 1."""
    return [step for step, averages in enumerate(rates.averages, 1) if averages]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 3}, [24]),
        ({"epochs": 6}, [40, 48]),
        ({"epochs": 5.5, "swa_start": 4}, [40, 44]),  # and at the end of the run
        ({"epochs": 3, "swa_every": 3}, [19, 22]),
        ({"epochs": 3, "swa_every": 1, "swa_start": 2.5}, [21, 22, 23, 24]),
        ({"epochs": 3, "swa_every": 100}, [24]),  # never nothing
        ({"epochs": 2, "swa_start": None}, []),
        ({"epochs": 1, "swa_start": 0.0, "swa_every": 4}, [4, 8]),
        ({"epochs": 6, "swa_start": 3, "val_split": 0.1, "schedule": "plateau"}, [32, 40, 48]),
    ],
)
def test_weights_join_every_k_steps_of_the_tail_or_after_its_epochs(settings, steps):
    rates = make_schedule_table(make_config(**settings), 8)
    assert joins(rates) == steps and len(rates.averages) == len(rates)


def test_a_row_is_read_by_its_step():
    rates = make_schedule_table(make_config(epochs=6), 5)
    assert rates[7] == tuple(rates.table[7].tolist()) and isinstance(rates[7], tuple)


@pytest.mark.parametrize(("every", "steps"), [(None, [25, 30, 35, 40]), (4, [24, 28, 32, 36, 40])])
def test_an_extended_run_averages_on(every, steps):
    config = make_config(epochs=6, resume="run", extend_epochs=8, swa_every=every)
    assert joins(extend(make_schedule_table(config, 5), config, 5)) == steps


def test_the_last_step_of_an_extended_run_joins_only_where_nothing_else_has():
    """The tail is shorter than the distance of two averages: the end of the first run has joined, or not."""
    config = make_config(epochs=6, resume="run", extend_epochs=8, swa_every=100)
    rates = extend(make_schedule_table(config, 5), config, 5)
    assert joins(rates) == [40]
    plan_averages(rates, config, 5, first_step=30, count=1)
    assert joins(rates) == []
    plan_averages(rates, config, 5, first_step=25, count=0)
    assert joins(rates) == [40]


# A longer run


def test_extending_keeps_all_rows_and_repeats_the_last():
    config = make_config(epochs=6, resume="run", extend_epochs=8)
    short = make_schedule_table(config, 5)
    rows = short.table.clone()
    long = extend(short, config, 5)
    assert len(long.table) == 40 and long.tail_step == 20
    assert torch.equal(long.table[:30], rows)
    assert (long.table[30:] == rows[-1]).all()


@pytest.mark.parametrize(("swa_anneal", "last_lr"), [(1.5, 0.2), (4, 0.6)])
def test_extending_a_tail_that_annealed_repeats_its_last_row_not_its_first(swa_anneal, last_lr):
    config = make_config(epochs=6, schedule="constant", lr_peak=1.0, swa_start=4, swa_lr=0.2, swa_anneal=swa_anneal,
                         resume="run", extend_epochs=8)  # fmt: skip
    short = make_schedule_table(config, 5)
    assert short.table[short.tail_step, 0] > short.table[-1, 0] + 0.1
    long = extend(short, config, 5).table
    assert len(long) == 40 and long[29:, 0].tolist() == pytest.approx([last_lr] * 11)


def test_without_extend_epochs_nothing_changes():
    schedule = make_schedule_table(make_config(epochs=6), 5)
    assert extend(schedule, make_config(epochs=6), 5) is schedule and len(schedule.table) == 30


def test_a_run_without_a_tail_is_not_extended():
    config = make_config(epochs=6, swa_start=None, resume="run", extend_epochs=8)
    with pytest.raises(ValueError, match="no averaging tail"):
        extend(make_schedule_table(config, 5), config, 5)


def test_extending_to_less_is_refused():
    config = make_config(epochs=6, resume="run", extend_epochs=4)
    with pytest.raises(ValueError, match="extend_epochs 4 is shorter"):
        extend(make_schedule_table(config, 5), config, 5)


def test_an_extended_run_goes_on_from_a_checkpoint():
    config = make_config(epochs=6, resume="run", extend_epochs=8)
    saved = extend(make_schedule_table(config, 5), config, 5)
    again = make_schedule_table(config, 5)
    again.load(saved.state())
    assert torch.equal(extend(again, config, 5).table, saved.table)
