"""Named recipes: each is a Config. The loop does not know their names.

"Source" figures are those of the experiments fastcifar grew out of, on the official CIFAR-10 with their ResNet.
"Here" is the table in RECORDS.md: raw weights after 6 epochs of the small network on 25,000 images of the JPEG copy
(the same images with JPEG loss), three seeds, with the network as it was then; the source's lengths have not
been run here yet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from fastcifar.config import Config, Optimizer

swa30 = Config()
"""Our default, whose values are the defaults of Config: OneCycle with momentum cycling for two thirds of 30 epochs,
then an averaging tail at a tenth of the peak; Muon on the filters; 24 pixels until 60% of the run.
Here: on all images 91.75 with six views after 30 epochs of the full network, 87.0 of the small one (one seed each)."""

speedrun94 = replace(
    swa30, recipe="speedrun94", epochs=7.5, scale="full", crop_pad_px=2, low_res_px=22, low_res_until=0.3,
    pct_start=0.1, momentum_min=0.55, momentum_max=0.7, swa_start=0.8, eval_every=100,
)  # fmt: skip
"""As few epochs and as little arithmetic as reach airbench94's accuracy: 7.5 epochs, two of them at 22 pixels, 0.239
PFLOP; SiLU, batch 500, the tail at a tenth of the peak over the last fifth, views for the least sure quarter of the
images. Here: 90.75 on all images (three seeds), where airbench94_muon has 90.6 after 8 epochs and 0.283 PFLOP."""

accurate96 = replace(
    speedrun94, recipe="accurate96", epochs=36.0, scale="wide", crop_pad_px=4, cutout_px=12, batch_size=1000,
    bias_lr_scale=110.0, head_lr_scale=350.0, low_res_px=24, low_res_until=0.46, swa_start=0.85, tta_share=1.0,
    eval_every=1,
)  # fmt: skip
"""For the last points: the wide network, cutout, 36 epochs. Not measured yet."""

_source = replace(
    swa30, activation="relu", optimizer="sgd", momentum=0.9, weight_decay=5e-4, label_smoothing=0.0, mirror="random",
    crop_pad_px=4, low_res_px=32, low_res_until=0.0, tta="none", batch_size=125, bias_lr_scale=1.0,
    head_lr_scale=1.0, swa_start=None, swa_every=None, swa_momentum=None, final_div_factor=1e4, momentum_min=0.85,
    momentum_max=0.95, pct_start=0.3, div_factor=25.0, anneal_strategy="cos",
)  # fmt: skip

multistep50 = replace(_source, recipe="multistep50", epochs=50.0, schedule="multistep", lr_peak=0.05)
"""Baseline: lr 0.05, divided by 10 at epochs 25 and 40 of 50. Source: 93.7 to 94%. Here: 70.5."""
cosine50 = replace(_source, recipe="cosine50", epochs=50.0, schedule="cosine", lr_peak=0.05)
"""Cosine from 0.05 to 0 over 50 epochs. Source: 93.8 to 94%. Here: 72.2."""
restarts60 = replace(_source, recipe="restarts60", epochs=60.0, schedule="restarts", lr_peak=0.05)
"""Cosine with warm restarts: 20 epochs, then 40. Source: 93.8 to 94%. Here: 73.4."""
cyclic50 = replace(_source, recipe="cyclic50", epochs=50.0, schedule="cyclic", lr_peak=0.1)
"""Five equal triangles between 0.001 and 0.1, momentum against it. Source: no figure. Here: 73.6."""
onecycle50 = replace(_source, recipe="onecycle50", epochs=50.0, lr_peak=0.1)
"""OneCycle to 0.1, 30% rising, momentum 0.95 to 0.85 and back. Source: 94.65%. Here: as onecycle30."""
onecycle30 = replace(onecycle50, recipe="onecycle30", epochs=30.0)
"""The same in 30 epochs. Source: 93.8%. Here: 74.4."""
swa30_source = replace(onecycle30, recipe="swa30-source", swa_start=2 / 3, swa_lr=0.01)
"""OneCycle for 20 epochs, then 10 epochs at constant lr 0.01, averaged at the end of each. Source: about 94%.
Here: 72.6, averaged 72.5: no better than onecycle30 at this length."""

_SGD: dict[str, Any] = {
    "lr_peak": 2.0, "swa_lr": 0.2, "momentum": 0.9, "momentum_min": 0.85, "momentum_max": 0.95, "weight_decay": 5e-4,
    "bias_lr_scale": 1.0, "head_lr_scale": 1.0,
}  # fmt: skip
_MUON: dict[str, Any] = {name: getattr(swa30, name) for name in _SGD}
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


def with_optimizer(recipe: Config, optimizer: Optimizer) -> Config:
    """A recipe under another optimizer, with the learning rates, momenta and decay that suit it (at batch 500)."""
    if (optimizer == "muon") == (recipe.optimizer == "muon"):
        return replace(recipe, optimizer=optimizer)
    return replace(recipe, optimizer=optimizer, **(_MUON if optimizer == "muon" else _SGD))


RECIPES: dict[str, Config] = {
    recipe.recipe: recipe
    for recipe in (
        swa30,
        speedrun94,
        accurate96,
        swa30_source,
        multistep50,
        cosine50,
        restarts60,
        cyclic50,
        onecycle50,
        onecycle30,
    )
}
