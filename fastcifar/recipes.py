"""Named recipes: each is a Config. The loop does not know their names.

Figures: what the source experiments reported on the official CIFAR-10 with their ResNet, and what was measured here
(see records/ and LOG.md; JPEG copy = the same images with JPEG loss, where all accuracies are a few points lower).
"""

from __future__ import annotations

from dataclasses import replace

from fastcifar.config import Config

swa30 = Config(recipe="swa30")

# The source experiments: plain SGD on a ResNet, lr 0.05 or 0.1, the schedule alone differs.
_source = replace(
    swa30, swa_start=None, lr_peak=0.1, momentum=0.9, weight_decay=5e-4, label_smoothing=0.0, mirror="random",
    crop_pad_px=4, tta="none", batch_size=125, final_div_factor=1e4,
)  # fmt: skip

RECIPES: dict[str, Config] = {
    "swa30": swa30,
}
