"""Which layers use the kernels of `pooled_conv`: those where they are faster, measured where the run is.

cuDNN's products are the faster ones, the kernels write less. What wins depends on the layer, its size and the card, and
no table knows it. So each layer is timed when it first sees an input, in the warm-up, as cuDNN times its own kernels.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcifar.models import fused
from fastcifar.models.cpu_conv import CpuConv2d
from fastcifar.models.launch import TOLERANCE, farthest_in_norm, require_close, tried
from fastcifar.models.pooled_conv import PLAIN, Kernels, run

Timer = Callable[[Callable[[], object]], float]
DTYPES: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
"""What the tensor cores multiply at full rate."""
GAIN = 0.97
"""The kernels must take at most this share of cuDNN's time: below it a timing may be chance."""


class PooledConv2d(CpuConv2d):
    """A convolution before a pool, whose training may use the kernels. Made by `use_kernels`."""

    kernels: dict[tuple[int, int], Kernels]
    """By height and width of the input: chosen when it is first seen, as cuDNN's own kernels are."""
    times_ms: dict[tuple[int, int], dict[Kernels, float]]
    """What that choice was made by: milliseconds of forward and backward; nothing where none was timed."""
    milliseconds: Timer
    """How long the card takes for some work."""


def conv_pool_norm(conv: nn.Module, norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """activation(norm(pool(conv(x)))): [B, C, H, W] with its border -> [B, N, (H - k + 1) // 2, (W - k + 1) // 2]."""
    kernels = PLAIN
    if isinstance(conv, PooledConv2d) and fused.uses_kernels(norm, activation) and fits(conv, x):
        kernels = kernels_of(conv, norm, x, activation)
    return run(conv, norm, x, activation, kernels)


def fits(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernels can take the layer and its input."""
    plain = conv.padding == (0, 0) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    square = conv.kernel_size in ((2, 2), (3, 3)) and conv.bias is None and conv.in_channels % 8 == 0
    last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    return plain and square and last and x.dtype in DTYPES and fused.fits(x, None)


def kernels_of(conv: PooledConv2d, norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Kernels:
    """The choice for this input, made at its first sight in a training step that is not being recorded.

    With deterministic algorithms it is always cuDNN: a timing would choose otherwise in one run than in the next.
    """
    size = (x.shape[2], x.shape[3])
    may_choose = torch.is_grad_enabled() and not torch.cuda.is_current_stream_capturing()
    if size not in conv.kernels and may_choose:
        deterministic = torch.are_deterministic_algorithms_enabled()
        conv.kernels[size] = PLAIN if deterministic else choose(conv, norm, x, activation)
    return conv.kernels.get(size, PLAIN)


def choose(conv: PooledConv2d, norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Kernels:
    """The fastest kernels that agree with cuDNN on x; none, with a warning, where they fail or differ."""
    with tried("the convolution kernels"):
        step = step_on(conv, norm, x, activation)
        require_close(largest_difference(step(PLAIN), step(Kernels(True, True))), TOLERANCE[x.dtype])
        kinds = [Kernels(*use) for use in itertools.product((False, True), repeat=2)]
        times = {kernels: conv.milliseconds(lambda kernels=kernels: step(kernels)) for kernels in kinds}  # type: ignore[misc]
        conv.times_ms[x.shape[2], x.shape[3]] = times
        best = min(times, key=times.__getitem__)
        return best if times[best] < GAIN * times[PLAIN] else PLAIN
    return PLAIN


def step_on(
    conv: nn.Conv2d, norm: nn.Module, x: Tensor, activation: Callable[[Tensor], Tensor]
) -> Callable[[Kernels], list[Tensor]]:
    """A function: kernels -> output and gradients of the layer on x, without that of the border, which nobody reads.

    The statistics of `norm` stay as they are.
    """
    needs_gradient, x = x.requires_grad, x.detach()
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    conv.to(x.dtype)  # a cast belongs to no kernel
    generator = torch.Generator(x.device).manual_seed(0)
    g = torch.randn(run(conv, norm, x, activation, PLAIN).shape, device=x.device, dtype=x.dtype, generator=generator)
    g = g.contiguous(memory_format=torch.channels_last)
    before = (conv.kernel_size[0] - 1) // 2

    def step(kernels: Kernels) -> list[Tensor]:
        image = x.detach().requires_grad_(needs_gradient)
        y = run(conv, norm, image, activation, kernels)
        inputs = [t for t in (image, *conv.parameters(), *norm.parameters()) if t.requires_grad]
        gradients = list(torch.autograd.grad(y, inputs, g)) if inputs else []  # none where all of it is frozen
        if needs_gradient:
            gradients[0] = gradients[0][:, :, before:, before:]
        return [y.detach(), *gradients]

    return step


largest_difference = farthest_in_norm


def use_kernels(model: nn.Module, milliseconds: Timer) -> None:
    """Lets the convolutions before pools use the kernels (in place, keys unchanged), as the timer says."""
    for module in model.modules():
        layer: Any = getattr(module, "conv1", None)
        if type(layer) is CpuConv2d:
            layer.__class__ = PooledConv2d
            layer.kernels, layer.times_ms, layer.milliseconds = {}, {}, milliseconds  # type: ignore[assignment]


def choices(model: nn.Module) -> dict[str, str]:
    """What each layer uses the kernels for, by its name and the size of its input; empty where nothing was chosen."""
    return {where: str(layer.kernels[size]) for where, layer, size in _chosen(model)}


def timings_ms(model: nn.Module) -> dict[str, dict[str, float]]:
    """Milliseconds that those choices were made by: of each layer and size, with the kernels for each of their uses."""
    return {
        where: {str(kernels): round(ms, 4) for kernels, ms in layer.times_ms[size].items()}
        for where, layer, size in _chosen(model) if size in layer.times_ms
    }  # fmt: skip


def _chosen(model: nn.Module) -> list[tuple[str, PooledConv2d, tuple[int, int]]]:
    """The layers with each size of their inputs, and what both are called."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PooledConv2d)]
    return [(f"{name} {h}x{w}", layer, (h, w)) for name, layer in layers for h, w in layer.kernels]
