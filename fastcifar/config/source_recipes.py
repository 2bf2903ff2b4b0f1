"""The experiments that fastcifar grew out of, at the lengths they had there.

"Source" figures are those that the source reported with its own ResNet on CIFAR-10.
"""

from dataclasses import replace

from fastcifar.config.config import Augment, Config, Model, Optimizer, Tail
from fastcifar.config.schedule import OneCycle
from fastcifar.config.schedules import Cosine, Cyclic, MultiStep, WarmRestarts

_source = Config(
    epochs=50,
    model=Model(activation="relu"),
    augment=Augment(crop_pad_px=4, mirror="random"),
    optimizer=Optimizer(name="sgd", batch_size=125, momentum=0.9, weight_decay=5e-4),
    schedule=MultiStep(peak=0.05),
)

multistep50 = replace(_source, schedule=MultiStep(peak=0.05, milestones=(0.5, 0.8), gamma=0.1))
"""The baseline: learning rate 0.05, divided by 10 at epochs 25 and 40 of 50. Source: 93.7 to 94%."""

cosine50 = replace(_source, schedule=Cosine(peak=0.05))
"""Cosine from 0.05 to 0 over 50 epochs. Source: 93.8 to 94%."""

restarts60 = replace(_source, epochs=60, schedule=WarmRestarts(peak=0.05, t_0=20 / 60, t_mult=2))
"""Cosine with warm restarts: 20 epochs, then 40. Source: 93.8 to 94%."""

cyclic50 = replace(_source, schedule=Cyclic(peak=0.1, base_lr=0.001, cycles=5, momentum_max=0.95, momentum_min=0.85))
"""Five equal triangles between 0.001 and 0.1, the momentum against the learning rate. Source: no figure."""

onecycle50 = replace(
    _source,
    schedule=OneCycle(peak=0.1, rise=0.3, momentum_max=0.95, momentum_min=0.85, final_div_factor=1e4),
)
"""OneCycle to 0.1 with 30% rise and momentum 0.95 to 0.85. Source: 94.65%."""

onecycle30 = replace(onecycle50, epochs=30)
"""The same in 30 epochs. Source: 93.8%."""

swa30_source = replace(onecycle30, tail=Tail(start=20 / 30, lr=0.01, every_steps=None))
"""OneCycle to 0.1 with 30% rise and momentum 0.95 to 0.85 for 20 epochs, then an averaging tail of 10 epochs at
learning rate 0.01, one average an epoch. Source: about 94%."""

SOURCE_RECIPES = {
    "swa30_source": swa30_source, "multistep50": multistep50, "cosine50": cosine50, "restarts60": restarts60,
    "cyclic50": cyclic50, "onecycle50": onecycle50, "onecycle30": onecycle30,
}  # fmt: skip
