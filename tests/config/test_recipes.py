"""Every recipe knows its name, names no machine, and takes every optimizer."""

import pytest

from fastcifar.config.config import Config, Optimizer, Run, Tail
from fastcifar.config.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.config.schedules import OneCycle
from fastcifar.config.settings import with_optimizer


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_names_no_machine(name):
    config = RECIPES[name]
    plain = Config(epochs=1, optimizer=Optimizer(batch_size=1), schedule=OneCycle(peak=0.1), run=Run(recipe=name))
    assert (config.machine, config.run, config.data, config.seed) == (plain.machine, plain.run, plain.data, 0)


def test_the_default_recipe_is_one():
    assert RECIPES[DEFAULT_RECIPE].epochs == 30


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_every_optimizer_and_comes_back(name):
    config = RECIPES[name]
    for optimizer in ("muon", "sgd", "apex-sgd"):
        assert with_optimizer(config, optimizer).optimizer.name == optimizer
    assert with_optimizer(config, config.optimizer.name) == config


def test_the_source_s_experiment_reads_as_it_is_described():
    """OneCycle to 0.1 with 30% rise and momentum 0.95 to 0.85 for 20 of 30 epochs, then a tail at 0.01."""
    config = RECIPES["swa30-source"]
    assert config.schedule == OneCycle(peak=0.1, rise=0.3, momentum_max=0.95, momentum_min=0.85, final_div_factor=1e4)
    assert config.tail == Tail(start=20 / 30, lr=0.01, every_steps=None) and config.epochs == 30
    assert config.epoch_of(config.tail.start) == pytest.approx(20)
