"""Every value of a Config makes sense, or ValueError says in one line which does not."""

from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest

from fastcifar.config import Config
from fastcifar.recipes import RECIPES

# A new knob is a decision: whoever adds one adds it here, and says in the change what it is worth.
KNOBS = """
    recipe epochs data cache_dir subset val_split smoke scale network norm activation
    device precision compile cuda_graph augment deterministic batch_size
    crop_pad_px mirror cutout_px low_res_px low_res_until
    optimizer lr_peak momentum weight_decay bias_lr_scale head_lr_scale label_smoothing
    schedule pct_start momentum_min momentum_max cycle_momentum anneal_strategy div_factor final_div_factor
    milestones gamma step_size eta_min t_0 t_mult base_lr cyclic_mode cyclic_gamma cycles factor patience end_factor
    swa_start swa_lr swa_anneal swa_momentum swa_every tta tta_share
    seed runs parallel target out resume extend_epochs eval_every checkpoint_every plot_schedule dry_run debug
"""


def test_the_list_of_knobs_is_frozen():
    assert {f.name for f in fields(Config)} == set(KNOBS.split())


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]


def test_positional_values_are_refused():
    with pytest.raises(TypeError):
        Config("swa30")  # type: ignore[call-arg]


OF_KIND = {
    kind: [f.name for f in fields(Config) if f.type in (kind, f"{kind} | None")] for kind in ("int", "float", "bool")
}
CHOICES = ["scale", "network", "norm", "activation", "device", "precision", "compile", "augment", "mirror",
           "optimizer", "schedule", "anneal_strategy", "cyclic_mode", "tta", "parallel"]  # fmt: skip
FREE_TEXT = ["recipe", "data", "cache_dir", "out", "resume"]
NUMBERS = OF_KIND["int"] + OF_KIND["float"]


def test_every_knob_is_of_a_kind_tested_here():
    assert set(NUMBERS + OF_KIND["bool"] + CHOICES + FREE_TEXT + ["milestones"]) == set(KNOBS.split())


BAD = [
    *((name, -1) for name in NUMBERS),
    *((name, value) for name in OF_KIND["float"] for value in (float("nan"), float("inf"), -float("inf"), -0.1)),
    *((name, value) for name in NUMBERS for value in ("3", "", True, [1], (1,), 1j)),
    *((name, 2.5) for name in OF_KIND["int"]),
    *((name, value) for name in OF_KIND["bool"] for value in (1, 0, "yes", None)),
    *((name, value) for name in CHOICES for value in ("", "nonsense", "Auto", None, 1, ["sgd"])),
    *((name, value) for name in FREE_TEXT for value in (1, True, ["a"], 2.5)),
    *((f.name, None) for f in fields(Config) if "None" not in str(f.type)),
    *((name, 0) for name in ("epochs", "batch_size", "runs", "eval_every", "div_factor", "t_mult", "t_0", "step_size",
                             "cycles", "subset", "swa_every", "extend_epochs", "final_div_factor", "gamma", "factor",
                             "target")),
    *((name, 1) for name in ("pct_start", "momentum", "momentum_min", "momentum_max", "label_smoothing", "val_split",
                             "factor", "target", "swa_momentum")),
    ("tta_share", 0),
    ("tta_share", 1.1),
    *((name, 94) for name in ("target", "val_split", "pct_start")),
    ("gamma", 1.5),
    ("seed", 2**64),
    ("low_res_px", 15),
    ("low_res_px", 33),
    ("crop_pad_px", 9),
    ("swa_start", 30),
    ("swa_start", 31.5),
    *(("milestones", value) for value in (0.5, "0.5", [0.5], (0.8, 0.5), (0.0, 0.5), (-1.0,), (float("nan"),),
                                          (float("inf"),), ("0.5",), (None,))),
    ("momentum_min", 0.999),
    ("momentum_max", 0.0),
    ("schedule", "plateau"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_a_bad_value_is_named_in_one_line(name, value):
    others = {"resume": "run"} if name == "extend_epochs" else {}
    with pytest.raises(ValueError) as error:
        Config(**{name: value, **others})
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 200


@pytest.mark.parametrize("name", FREE_TEXT)
def test_a_text_may_be_any_text(name):
    knobs: dict[str, Any] = {name: "-1 é"}
    assert getattr(Config(**knobs), name) == "-1 é"


@pytest.mark.parametrize(
    "knobs",
    [
        {"epochs": 1},
        {"epochs": 0.01},
        {"epochs": 5, "swa_start": 4.99},
        {"swa_start": 0.0},
        {"swa_start": None, "swa_every": 3},
        {"milestones": ()},
        {"milestones": (0.25, 3, 7.5)},
        {"pct_start": 0.0, "momentum": 0.0, "lr_peak": 0.0},
        {"schedule": "plateau", "val_split": 0.1},
        {"target": 0.94},
        {"resume": "run", "extend_epochs": 40},
        {"seed": 2**63 - 1},
        {"low_res_px": 16, "low_res_until": 0.5},
    ],
)
def test_values_at_the_edge_are_taken(knobs):
    assert all(getattr(Config(**knobs), name) == value for name, value in knobs.items())


def test_target_in_percent_is_told_how_to_write_it():
    with pytest.raises(ValueError, match=r"target is 94; give the accuracy as a fraction, such as 0\.94"):
        Config(target=94)


def test_plateau_without_held_out_images_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"--val-split 0\.1"):
        Config(schedule="plateau")


def test_extending_needs_a_run_to_extend():
    with pytest.raises(ValueError, match="add --resume"):
        Config(extend_epochs=40)


def test_several_runs_are_not_extended():
    with pytest.raises(ValueError, match="does not go with --runs"):
        Config(runs=2, resume="run", extend_epochs=40)


@pytest.mark.parametrize(
    ("when", "epochs", "expected"),
    [(0.5, 30, 15), (2 / 3, 30, 20), (2 / 3, 9, 6), (20, 30, 20), (1, 30, 1), (0.0, 30, 0), (0.5, 1, 0.5)],
)
def test_below_one_is_a_share_of_the_run_else_an_epoch(when, epochs, expected):
    assert Config(epochs=epochs, swa_start=None).at(when) == pytest.approx(expected)


def test_replacing_epochs_keeps_the_proportions():
    config = Config()
    assert config.at(config.swa_start or 0) == pytest.approx(20)
    shorter = replace(config, epochs=12)
    assert shorter.at(shorter.swa_start or 0) == pytest.approx(8)


def test_a_config_survives_plain_containers():
    config = Config(milestones=(0.25, 0.75), swa_start=None, target=0.94)
    assert Config(**asdict(config)) == config


# Recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_names_no_machine(name):
    config = RECIPES[name]
    assert config.recipe == name
    for knob in ("device", "precision", "compile", "cuda_graph", "augment", "out", "resume", "seed", "runs", "data"):
        assert getattr(config, knob) == getattr(Config(), knob), knob


def test_the_default_recipe_is_the_default_config():
    assert RECIPES[Config().recipe] == Config()
