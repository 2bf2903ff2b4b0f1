"""Named recipes: each is a Config that reads like the description of its method. The loop does not know their names.

What fastcifar measures with them is in RECORDS.md. Older ones are in `source_recipes.py`.
"""

from dataclasses import replace

from fastcifar.config.config import Augment, Config, Evaluation, Model, Optimizer, Run, Tail
from fastcifar.config.schedule import OneCycle
from fastcifar.config.source_recipes import SOURCE_RECIPES

swa30 = Config(
    epochs=30,
    model=Model(activation="silu"),
    augment=Augment(crop_pad_px=4, mirror="alternating", low_res_px=(24,), low_res_until=(0.6,)),
    optimizer=Optimizer(
        name="muon", batch_size=500, momentum=0.85, weight_decay=5e-5, bias_lr_scale=55.0, head_lr_scale=175.0,
        label_smoothing=0.2,
    ),
    schedule=OneCycle(
        peak=0.12, rise=0.2, momentum_max=0.9, momentum_min=0.6, anneal="linear", div_factor=10.0,
    ),
    tail=Tail(start=20 / 30, lr=0.012, every_steps=5),
    evaluation=Evaluation(tta="flip-shift", tta_share=0.25),
)  # fmt: skip
"""The default: OneCycle with momentum cycling for two thirds of 30 epochs, then an averaging tail at a tenth of the
peak; Muon on the filters; 24 pixels until 60% of the run; six views of the least sure quarter of the test images."""

speedrun94 = replace(
    swa30,
    epochs=8.0,
    model=Model(
        scale="full", activation="silu", start="cosines", train_stem="low-res", cool_first_stage=(0.6, 0.8),
    ),
    augment=Augment(
        crop_pad_px=2, mirror="alternating", order="balanced", low_res_px=(24,), low_res_until=(0.375,),
    ),
    schedule=OneCycle(
        peak=0.12, rise=0.1, momentum_max=0.7, momentum_min=0.55, anneal="linear", div_factor=10.0,
    ),
    tail=Tail(start=0.8, lr=0.012, every_steps=5),
    evaluation=Evaluation(tta="flip-shift", tta_share=0.25, eval_every=100),
)  # fmt: skip
"""The least arithmetic that comes near 94%, 0.200 PFLOP: 8 epochs, three of them at 24 pixels; the stem is trained at
24 pixels alone, the first stage cools and is fixed when the averaging tail begins. Measured: 93.9%."""

fewest94 = replace(
    speedrun94,
    epochs=5.0,
    model=Model(scale="wide", activation="silu"),
    augment=Augment(crop_pad_px=2, mirror="alternating"),
    optimizer=replace(swa30.optimizer, momentum=0.87, label_smoothing=0.18),
    tail=Tail(start=0.84, lr=0.012, every_steps=5),
)
"""The fewest epochs that reach 94%, at more arithmetic: the wide network, 5 epochs, 0.510 PFLOP. Measured: 94.1%."""

accurate96 = replace(
    speedrun94,
    epochs=36.0,
    model=Model(scale="wide", activation="silu"),
    augment=Augment(crop_pad_px=4, mirror="alternating", cutout_px=12, low_res_px=(24,), low_res_until=(0.46,)),
    optimizer=replace(swa30.optimizer, batch_size=1000, bias_lr_scale=110.0, head_lr_scale=350.0),
    tail=Tail(start=0.85, lr=0.012, every_steps=5),
    evaluation=Evaluation(tta="flip-shift", tta_share=1.0),
)
"""For the last points: the wide network, cutout, 36 epochs. Not measured yet."""


def _named(**recipes: Config) -> dict[str, Config]:
    names = {name: name.replace("_", "-") for name in recipes}
    return {names[n]: replace(config, run=Run(recipe=names[n])) for n, config in recipes.items()}


RECIPES = _named(swa30=swa30, speedrun94=speedrun94, fewest94=fewest94, accurate96=accurate96, **SOURCE_RECIPES)
"""Recipes by the name that `--recipe` takes."""
DEFAULT_RECIPE = "swa30"


def find_recipe(name: str) -> Config:
    """The recipe of a name. ValueError, listing the known ones, for another name."""
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; known: {', '.join(RECIPES)}")
    return RECIPES[name]
