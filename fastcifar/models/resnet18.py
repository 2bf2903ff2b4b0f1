"""ResNet-18 for 32x32 images, the classic baseline (He et al. 2016, arXiv:1512.03385).

Shapes: B images, C channels, H W pixels, K classes.
"""

from torch import Tensor, nn

from fastcifar.models.layers import ACTIVATIONS, conv, make_norm

WIDTHS = {"small": 16, "full": 64, "wide": 128}
"""Channels of the first stage; each next stage has twice as many."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.norm1 = conv(c_in, c_out, norm, stride=stride), make_norm(c_out, norm)
        self.conv2, self.norm2 = conv(c_out, c_out, norm), make_norm(c_out, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(c_in, c_out, norm, kernel=1, stride=stride), make_norm(c_out, norm))

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The classic baseline for 32x32 images: 3x3 stem without pooling, four stages of two blocks; 3.33 GFLOP."""

    def __init__(self, width: int, num_classes: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem, self.norm = conv(3, width, norm), make_norm(width, norm)
        widths, blocks, c_in = [width, 2 * width, 4 * width, 8 * width], [], width
        for i, c_out in enumerate(widths):
            blocks += [BasicBlock(c_in, c_out, 1 if i == 0 else 2, norm, activation)]
            blocks += [BasicBlock(c_out, c_out, 1, norm, activation)]
            c_in = c_out
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        x = self.stages(x).mean(dim=(2, 3))
        return self.head(x).float()
