"""The stem of resnet9 from the uint8 images on the card: crop, mirror, normalisation, cutout, convolution, activation.

One kernel, which writes none of the images that an executor would make. It gives no gradient: it is for the part of a
run that does not train the stem. Plain torch is what it is compared with. Shapes: B images, C channels, S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcifar.augment.executor import Draws
from fastcifar.augment.images import DeviceImages
from fastcifar.augment.plan import EpochPlan, draw
from fastcifar.config.config import Augment
from fastcifar.models.launch import TOLERANCE, farthest, launch, require_close, tried
from fastcifar.models.layers import ACTIVATIONS, border_before_pool, pad_before_pool

KNOWN_DRAWS = ("index", "offset_y", "offset_x", "mirror", "cutout_y", "cutout_x")
"""The draws that the kernel carries out, in their order: the first fields of EpochPlan, a column of the table each."""
BLOCK_M, NUM_WARPS = 128, 4
"""Outputs of a program, and its warps. Not tuned on a card."""


@torch.no_grad()
def stem(draws: Draws, conv: nn.Conv2d, activation: str, border: int = 0) -> Tensor:
    """activation(conv(x)) of the images x of `draws`: [B, C, S-1, S-1] channels_last, in their compute dtype.

    border: size of the filters of a pooled convolution that reads the output, which then has its zero border
    (`pad_before_pool`).
    """
    images, size, channels = draws.source, draws.source.size_px, conv.out_channels
    before, after_y, after_x = border_before_pool((size - 1, size - 1), border) if border else (0, 0, 0)
    shape = (size - 1 + before + after_y, size - 1 + before + after_x)
    y = torch.empty(len(draws.table), channels, *shape, dtype=images.dtype, device=images.padded.device,
                    memory_format=torch.channels_last)  # fmt: skip
    rows, table = y.numel() // channels, draws.table.contiguous()
    assert conv.bias is not None
    weight = conv.weight.permute(0, 2, 3, 1).reshape(channels, 12)  # a view, as filters are channels_last
    launch("augment.stem_kernels.stem", (-(-rows // BLOCK_M),), images.padded, table, images.mean, images.inv_std,
           weight, conv.bias, y, rows, images.padded.shape[1], size, *shape, before, channels, CUTOUT=draws.cutout_px,
           ACT=activation, BLOCK_M=BLOCK_M, BLOCK_C=max(16, 1 << (channels - 1).bit_length()),
           num_warps=NUM_WARPS)  # fmt: skip
    return y


@torch.no_grad()
def plain_stem(draws: Draws, conv: nn.Conv2d, activation: str, border: int = 0) -> Tensor:
    """The same by the executor's operations, convolution and activation."""
    x = draws.make().permute(0, 3, 1, 2)
    assert conv.bias is not None
    y = ACTIVATIONS[activation](F.conv2d(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype)))
    return pad_before_pool(y, border) if border else y


def largest_difference(images: DeviceImages, conv: nn.Conv2d, activation: str, cutout_px: int) -> float:
    """Between the kernel and plain torch on some draws, relative to the largest value; inf where one has NaN."""
    plan = draw(Augment(crop_pad_px=images.pad_px), 64, 0, len(images.labels), 0)
    draws = Draws.of(plan.steps(0, 1), images, cutout_px)
    return farthest(*([by(draws, conv, activation, border=3)] for by in (plain_stem, stem)))


def works(images: DeviceImages, conv: nn.Conv2d, activation: str, cutout_px: int) -> bool:
    """Whether the kernel runs here and agrees with plain torch. A reason against it is logged in one line."""
    with tried("the stem's kernel"):
        if unknown := [*EpochPlan.__dataclass_fields__][len(KNOWN_DRAWS) :]:
            raise ValueError(f"does not know the draw {unknown[0]}")  # and would leave it out without a word
        require_close(largest_difference(images, conv, activation, cutout_px), TOLERANCE[images.dtype])
        return True
    return False
