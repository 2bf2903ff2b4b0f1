"""OneCycle that holds its peak (`--pct-hold`): torch's scheduler, which stands still there for a number of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import lr_scheduler


def steps_at_peak(rise: float, hold: float, count: int) -> tuple[int, int]:
    """(steps of the rise, further steps at the peak) of a cycle of `count` steps.

    rise, hold: fractions of the cycle that both take. The fall keeps a step at least.
    """
    rising = max(2, round(rise * count))  # torch's rise of one step ends before the peak
    return rising, max(0, min(round(hold * count), count - rising - 1))


class HeldPeak:
    """Steps a OneCycle, but stands still for `held` steps when it has taken `rising`."""

    def __init__(self, onecycle: lr_scheduler.OneCycleLR, rising: int, held: int) -> None:
        self.onecycle, self.rising, self.held, self.number = onecycle, rising, held, 0

    def step(self) -> None:
        """Writes the next learning rate and momentum into the optimizer's groups."""
        self.number += 1
        if not self.rising <= self.number < self.rising + self.held:
            self.onecycle.step()
