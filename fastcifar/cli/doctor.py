"""`fastcifar doctor`: versions and the device, and for each missing part the command that installs it."""

from __future__ import annotations

from collections.abc import Sequence

from fastcifar.recipes import DEFAULT_RECIPE, RECIPES
from fastcifar.runs.environment import versions
from fastcifar.training.hardware import choose_hardware


def main(argv: Sequence[str]) -> int:
    """Prints what is installed and what a run would use, and returns the exit code."""
    hardware = choose_hardware(RECIPES[DEFAULT_RECIPE])
    for name, version in versions().items():
        print(f"{name:12s} {version or '-'}")
    print(f"device       {hardware.name}")
    print(f"compute      {hardware.precision}, compile {hardware.compile}, scale {hardware.scale}")
    print(f"augmentation {hardware.executor}")
    if versions()["dali"] is None:
        print(
            "DALI is not installed: pip install nvidia-dali-cuda130 (driver 580 or later; older: nvidia-dali-cuda120)"
        )
    if hardware.device.type == "cuda" and versions()["driver"] is None:
        print("nvidia-smi does not run: the driver's version is not known")
    return 0
