"""Prints what an epoch of speedrun94 costs by its image size, as a share of one at 32 pixels. Nothing is trained."""

from bench import harness
from fastcifar.training.hardware import resolve
from fastcifar.training.task import make_task

DATASET = harness.random_dataset(50_000, 100)


def pflop(settings: str) -> float:
    config, hardware = resolve(harness.parse("speedrun94", f"train_stem=low-res {settings}"))
    return make_task(config, DATASET, hardware).train_pflop


two_low = pflop("epochs=8 low_res_px=22 low_res_until=2")
full = pflop("epochs=9 low_res_px=22 low_res_until=2") - two_low
print(f"32 {full:.4f} PFLOP")
for size in (20, 21, 22, 23, 24, 25, 26, 28):
    third = pflop(f"epochs=8 low_res_px={size} low_res_until=3") - pflop(f"epochs=8 low_res_px={size} low_res_until=2")
    print(f"{size} {1 + third / full:.3f}")
