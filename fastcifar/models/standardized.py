"""Weight standardisation, for the networks with group norm (`--norm gn-ws`)."""

import torch
from torch import Tensor, nn


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters are standardised to zero mean and unit gain (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        var, mean = torch.var_mean(w.float(), dim=(1, 2, 3), keepdim=True, correction=0)
        w = ((w - mean) * torch.rsqrt(var * w[0].numel() + 1e-6)).to(w.dtype)
        return self._conv_forward(x, w, self.bias)
