"""Groups of what a profile finds, by name, beside the least work of each: at the peak rates of a card, a time.

Shapes: B images, S x S pixels.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DGRAD, WGRAD, FORWARD = "convolution, input gradient", "convolution, weight gradient", "convolution, forward"
NORM, UPDATE, LOADER, OTHER = "norm, pool, activation", "Muon, SGD, products", "loader", "other"
GROUPS: dict[str, str] = {
    "loss": r"nll_?loss|soft_?max|cross_?entropy",
    DGRAD: r"dgrad|input_gradient_of_pooled|backward_data|bwd_data",
    WGRAD: r"wgrad|weight_gradient_of_pooled|add_parts|backward_weight|bwd_filter|init_device_workspace",
    "convolution, both gradients": r"convolution_?backward",
    FORWARD: r"fprop|convolve|conv_pool_stats|convolution|conv2d|cutlass.*conv|winograd",
    NORM: r"batch_?norm|group_?norm|native_norm|max_?pool|statistics|normalize|gradient_sums|input_gradient|activat|"
    r"silu|gelu|relu|sigmoid",
    UPDATE: r"gemm|nvjet|bmm|addmm|::mm$|::matmul$|linear|muon|multi_tensor_apply|foreach|optimizer|sgd|lerp|"
    r"^(prepare|gram|steps|apply)(_\w+)?$",
    LOADER: r"^take\b|index_?select|gather|index_?elementwise|index_kernel|::index$|SliceFlip|upsample|interpolate",
    "casts": r"float16_copy|half_copy|LoadWithCast|direct_copy|::_?to(_copy)?$",
    "copies, fills": r"memcpy|memset|CatArray|nchwToNhwc|nhwcToNchw|Fill|::copy_$|::zeros?_?$|clone|contiguous",
}
"""Group -> pattern of names, of kernels on a card and of operators on a CPU. The first that fits counts."""
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12), "NVIDIA H200": (989e12, 4.8e12),
}  # fmt: skip
"""Card -> FLOP per second of dense products in bf16 and fp16, and bytes per second of its memory (data sheet)."""
VALUE_BYTES = 2  # of an activation in bf16 or fp16
UPDATE_BYTES = 20  # of a weight: itself and its momentum in fp32 read and written, gradient read, 16-bit copy written
NEWTON_SCHULZ_STEPS = 3


class Row(NamedTuple):
    """A kernel or operator of a profile: its whole name, its calls and the microseconds of its own."""

    name: str
    calls: int
    us: float


class Work(NamedTuple):
    """Least work of a group in a step: FLOP, and bytes read and written."""

    flop: float
    moved: float


def group_of(name: str) -> str:
    """The group that a name belongs to."""
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def report(
    rows: Iterable[Row], steps: int, work: Mapping[str, Work], peaks: tuple[float, float] | None, heading: str
) -> str:
    """The text of a profile of some steps: a table of groups and a list of all rows, both per step and costliest first.

    peaks: of the card (`PEAKS`); None leaves the ideal times out.
    """
    named = sorted(((row, group_of(row.name)) for row in rows), key=lambda pair: -pair[0].us)
    total = sum(row.us for row, _ in named) or 1.0
    times = {group: sum(row.us for row, g in named if g == group) for group in (*GROUPS, OTHER)}
    lines = [heading, "", f"{'us a step':>10} {'share':>6} {'calls':>7} {'arithmetic':>11} {'bytes':>8}  group"]
    for group, us in sorted(times.items(), key=lambda item: -item[1]):
        calls = sum(row.calls for row, g in named if g == group)
        if calls:
            ideal = _ideal_us(work.get(group), peaks)
            lines.append(
                f"{us / steps:10.1f} {us / total:6.1%} {calls / steps:7.1f} {ideal[0]:>11} {ideal[1]:>8}  {group}"
            )
    lines += [
        f"{total / steps:10.1f} {1:6.1%} {sum(row.calls for row, _ in named) / steps:7.1f} {'':11} {'':8}  all",
        "",
    ]
    if peaks:
        lines += [f"arithmetic, bytes: us a step at {peaks[0] / 1e12:g} TFLOP/s and {peaks[1] / 1e12:g} TB/s", ""]
    lines.append(f"{'us a step':>10} {'calls':>7}  {'group':<{max(map(len, times))}}  name")
    lines += [f"{row.us / steps:10.1f} {row.calls / steps:7.1f}  {group:<{max(map(len, times))}}  {row.name}"
              for row, group in named]  # fmt: skip
    return "\n".join(lines)


def _ideal_us(work: Work | None, peaks: tuple[float, float] | None) -> tuple[str, str]:
    """Microseconds by arithmetic and by bytes, as text."""
    if work is None or peaks is None:
        return "-", "-"
    flop_us, moved_us = 1e6 * work.flop / peaks[0], 1e6 * work.moved / peaks[1]
    return (f"{flop_us:.1f}" if flop_us else "-"), f"{moved_us:.1f}"


def step_work(model: nn.Module, batch: int, size_px: int, muon: bool = True) -> dict[str, Work]:
    """Work of a step of B images, from the shapes of the convolutions in a forward pass of two images on the CPU.

    Between two convolutions norm, pool and activation read the output of the first and write the input of the second;
    backward they read the gradient of the second and the output again, and write the gradient of the first. Muon is
    counted with products of the smaller side of each filter: X X^T, three iterations of three products, and one
    product with X.
    """
    totals: dict[str, list[float]] = {group: [0.0, 0.0] for group in (FORWARD, DGRAD, WGRAD, NORM, UPDATE, LOADER)}

    def add(group: str, flop: float, moved: float) -> None:
        totals[group][0] += flop
        totals[group][1] += moved

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        taken, made = (VALUE_BYTES * batch / 2 * tensor.numel() for tensor in (inputs[0], output))
        flop, moved = weight[0].numel() * output.numel() * batch, taken + made + VALUE_BYTES * weight.numel()
        is_first = inputs[0].shape[1] == 3
        add(FORWARD, flop, moved)
        add(NORM, 0.0, 3 * made + (0.0 if is_first else 2 * taken))
        if inputs[0].requires_grad:
            add(DGRAD, flop, moved)
        if weight.requires_grad:
            rows, columns = sorted((weight.shape[0], weight[0].numel()))
            add(WGRAD, flop, moved)
            if muon:
                add(
                    UPDATE, 4.0 * rows**2 * columns + 6.0 * NEWTON_SCHULZ_STEPS * rows**3, UPDATE_BYTES * weight.numel()
                )

    twin = copy.deepcopy(model).cpu().eval()
    for layer in twin.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    twin(torch.zeros(2, 3, size_px, size_px))
    add(LOADER, 0.0, 2 * VALUE_BYTES * batch * 3 * size_px**2)
    return {group: Work(*total) for group, total in totals.items() if total[1]}
