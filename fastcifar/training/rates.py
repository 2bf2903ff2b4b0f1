"""What a device can do: seconds of some work, and the rate of a product of matrices."""

from collections.abc import Callable

import torch

from fastcifar.training.stopwatch import Stopwatch


def repeats_s(work: Callable[[], object], device: torch.device, repeats: int, warm_ups: int = 1) -> list[float]:
    """Seconds of each of `repeats` calls, with the device idle at both ends, after `warm_ups` calls."""
    taken = []
    for _ in range(warm_ups + repeats):
        stopwatch = Stopwatch(device)
        with stopwatch("work"):
            work()
        taken.append(stopwatch.time_s["work"])
    return taken[warm_ups:]


def matrix_flop_per_s(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """FLOP per second of a square matrix product, best of three: an upper bound for a network on this device.

    Of random numbers: on a card a product of equal ones draws less power and runs faster than any network.
    """
    a = torch.rand(side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return 2 * side**3 / min(repeats_s(lambda: a @ a, device, repeats=3, warm_ups=0))
