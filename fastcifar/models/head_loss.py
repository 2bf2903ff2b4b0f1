"""Largest pixel, classifier and loss with their gradients: one kernel, where torch takes some twenty.

Shapes: B images, P pixels of the last map, C channels, K classes. Plain torch (`plain_head_loss`) is what the kernel is
compared with.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcifar.models.launch import launch

BLOCK_B, BLOCK_C, NUM_WARPS = 16, 64, 4
"""Images of a program, channels of a tile, warps. Not tuned on a card."""


@dataclass(frozen=True)
class HeadLoss:
    """Gradients of the mean loss."""

    d_features: Tensor
    """[B, C, H, W] like the features."""
    d_weight: Tensor
    """[parts, K, C] f32: the gradient of the classifier is their sum."""
    losses: Tensor
    """[parts] f32: the mean loss is their sum."""


def head_loss(features: Tensor, weight: Tensor, labels: Tensor, scale: float, smoothing: float) -> HeadLoss:
    """Cross-entropy of scale * classifier(largest pixel) with label smoothing, as torch has it.

    features [B, C, H, W] channels_last, weight [K, C] f32, labels [B] i64. Products take the dtype of the features.
    """
    features = features.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = features.shape
    classes, programs = len(weight), -(-batch // BLOCK_B)
    d_features = torch.empty_like(features)
    d_weight = torch.empty(programs, classes, channels, device=features.device)
    losses = torch.empty(programs, device=features.device)
    launch("models.head_kernels.head_loss", (programs,), features, weight, labels, d_features, d_weight, losses, batch,
           classes, scale, smoothing, channels, pixels=height * width, BLOCK_B=BLOCK_B,
           BLOCK_K=max(16, 1 << (classes - 1).bit_length()), BLOCK_C=BLOCK_C, num_warps=NUM_WARPS,
           num_stages=1)  # fmt: skip
    return HeadLoss(d_features, d_weight, losses)


def plain_head_loss(features: Tensor, weight: Tensor, labels: Tensor, scale: float, smoothing: float) -> HeadLoss:
    """The same by plain torch, in one part."""
    features, weight = features.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = F.linear(features.amax(dim=(2, 3)), weight.to(features.dtype)).float() * scale
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    d_features, d_weight = torch.autograd.grad(loss, (features, weight))
    return HeadLoss(d_features, d_weight[None], loss.detach()[None])
