"""Lookahead (Zhang et al. 2019, arXiv:1907.08610) in the form of airbench94 (Jordan 2024): slow weights follow the fast
ones, which are trained and go on from the slow ones.

Every `EVERY` steps: slow += (1 - a) (fast - slow), fast = slow, with a = 0.95^5 (t / T)^3 after t of T steps. In the
beginning the slow weights are the fast ones, in the end they hardly move. The run ends with them.
"""

from collections.abc import Callable

import torch
from torch import nn

from fastcifar.optim.averaging import RunningMean

EVERY = 5
"""Steps between two exchanges."""
LARGEST_SHARE = 0.95**5
"""What the slow weights keep of themselves in the last step."""


class Lookahead(RunningMean):
    """The slow weights, in place of a mean. Momenta and the statistics of batch norms stay those of the fast ones."""

    def __init__(self, model: nn.Module, num_steps: int) -> None:
        super().__init__(model)
        self.num_steps = num_steps
        self.copied: Callable[[], None] | None = None
        """Called when the weights have changed: where low-precision copies of them must follow."""

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """An exchange, to be called after every `EVERY` steps. Does not wait for the device.

        The first one takes the weights as they are: `a` is 2e-7 there in a run of 750 steps.
        """
        self.count += 1
        kept = LARGEST_SHARE * (EVERY * self.count / self.num_steps) ** 3 if self.count > 1 else 0.0
        slow, fast = list(self.mean.values()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(slow, fast, 1 - kept)
        torch._foreach_copy_(fast, slow)
        if self.copied is not None:
            self.copied()
