"""Groups of what a profile finds, by name, with the time that each could take at the peak rates of a card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

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
PEAKS: dict[str, tuple[float, float]] = {"NVIDIA H100 80GB HBM3": (989e12, 3.35e12)}
"""Card -> FLOP per second of dense products in bf16 and fp16, and bytes per second of its memory (data sheet)."""


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
