"""Builds the kernels of pooled convolutions for cards that are not here: python conv_builds.py 90

Prints a line of JSON: registers of a thread and bytes spilled as NVIDIA's assembler tells them, shared memory, the
products of Hopper's tensor cores, and how wide tiles are copied. At the widths of the full network.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from fused_builds import F32, X, assembled, compiled

from fastcifar.config.shapes import SHAPES
from fastcifar.models import conv_kernels, pooled_conv

TYPES = {"x": X, "w": X, "z": X, "code": "*u8", "parts": F32, "g": X, "d_x": X, "d_w": X}
KERNELS = ("conv_pool_stats", "input_gradient_of_pooled", "weight_gradient_of_pooled")


def build(name: str, constants: dict[str, int], arch: int, **options: int) -> Any:
    """As Triton's own launcher would specialise it: aligned tensors, numbers that it knows nothing of."""
    kernel = getattr(conv_kernels, name)
    signature = {a: "constexpr" if a in constants else TYPES.get(a, "i32") for a in kernel.arg_names}
    hints = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    return compiled(kernel, signature, constants, hints, arch, **options)


def builds(*archs: int) -> Iterator[dict[str, Any]]:
    widths = [SHAPES["full"].stem, *(stage.width for stage in SHAPES["full"].stages)]
    for arch, (c_in, c_out), name in itertools.product(archs, itertools.pairwise(widths), KERNELS):
        tile = pooled_conv.tile_of(name, c_in, c_out)
        constants = {"C": c_in, "N": c_out, "KERNEL": 3, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns,
                     "BLOCK_K": tile.terms}  # fmt: skip
        built = build(name, constants, arch, num_warps=tile.warps, num_stages=tile.stages)
        yield describe(name, arch, built) | {"c_in": c_in, "c_out": c_out}
    for arch in archs:
        yield describe("add_parts", arch, build("add_parts", {"BLOCK": pooled_conv.BLOCK_TO_ADD}, arch, num_warps=4))


def describe(name: str, arch: int, built: Any) -> dict[str, Any]:
    ptx = built.asm["ptx"]
    copied = [int(n, 16) for n in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], 0x(\w+)", ptx)]
    return {"kernel": name, "arch": arch, **assembled(ptx, arch), "shared_bytes": built.metadata.shared,
            "wgmma": ptx.count("wgmma.mma_async"), "mma": ptx.count("mma.sync"),
            "narrowest_copy_bytes": min(copied, default=0)}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(list(builds(*map(int, sys.argv[1:])))))
