"""The clock of a run in a bench: a rest before it, and the joules that the card uses in it. Imported; no command."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastcifar.training.stopwatch import Stopwatch


def rest(seconds: float) -> None:
    """Lets the device idle for so long."""
    threading.Event().wait(seconds)


class RunClock(Stopwatch):
    """A stopwatch that rests before its first training phase, on a card, and notes the card's energy there.

    pause_s: seconds that an idle card gets after the warm-up, so that runs begin at the same clock rate and heat.
    """

    def __init__(self, device: torch.device, pause_s: float = 0.0) -> None:
        super().__init__(device)
        self.pause_s = pause_s if device.type == "cuda" else 0.0
        self.began = False
        self.before_j: float | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if phase == "train" and not self.began:
            self.began = True
            rest(self.pause_s)
            self.before_j = energy_j(self.device)
        with super().__call__(phase):
            yield

    def joules(self) -> float | None:
        """Joules of the card since the first training phase began; None where the card does not count them."""
        now_j = energy_j(self.device)
        return None if now_j is None or self.before_j is None else now_j - self.before_j


def energy_j(device: torch.device) -> float | None:
    """Joules that a card has used since its driver was loaded: NVML's counter, of Volta and later.

    None without a card, without the package nvidia-ml-py, or where the card has no such counter. The counter moves on
    every 20 to 100 ms.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # it counts millijoules
    except pynvml.NVMLError:
        return None
