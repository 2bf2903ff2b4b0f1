"""Builds the kernels for cards that are not here: python fused_builds.py 80 90

Prints a line of JSON: registers of a thread and bytes spilled as NVIDIA's assembler tells them, and the widest load.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcifar.models import fused, kernels

X, F32 = "*bf16", "*fp32"
NORM = {"saved": F32, "weight": F32, "bias": F32}
TYPES: dict[str, list[dict[str, Any]]] = {
    "statistics": [
        {"x": X, "plus": None, "z": None, "code": None, "parts": F32},
        {"x": X, "plus": X, "z": X, "code": None, "parts": F32},
        {"x": X, "plus": None, "z": X, "code": "*u8", "parts": F32},
    ],
    "normalize": [{"z": X, "y": X, "parts": F32, **NORM, "running_mean": F32, "running_var": F32, "batches": "*i64"}],
    "gradient_sums": [{"g": X, "z": X, **NORM, "parts": F32}],
    "input_gradient": [
        {"g": X, "z": X, "code": code, **NORM, "parts": F32, "d_x": X, "d_weight": F32, "d_bias": F32}
        for code in (None, "*u8")
    ],
    "activate": [{"x": X, "y": X}],
    "activation_gradient": [{"g": X, "x": X, "d_x": X}],
}
"""Types of the tensors of each kernel, None for a tensor that is not given; all else is a number."""


def build(name: str, types: dict[str, Any], border: bool, arch: int) -> Any:
    """As Triton's own launcher would specialise it: aligned tensors, channels a multiple of 16."""
    kernel = getattr(kernels, name)
    tiling = fused.REDUCE if name in ("statistics", "gradient_sums") else fused.APPLY
    fixed = {"ACT": "silu", "BORDER": border, "BLOCK_M": tiling[0], "BLOCK_C": fused.BLOCK_C}
    constants = {**fixed, **{tensor: None for tensor, kind in types.items() if kind is None}}
    signature, hints = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        number = "fp32" if argument in ("momentum", "eps") else "i32"
        signature[argument] = "constexpr" if argument in constants else types.get(argument, number)
        if signature[argument].startswith("*") or argument == "C":
            hints[(i,)] = [["tt.divisibility", 16]]
    constants = {argument: constants[argument] for argument in signature if argument in constants}
    return compiled(kernel, signature, constants, hints, arch, num_warps=fused.NUM_WARPS)


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], hints: Any, arch: int, **options: int
) -> Any:
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def assembled(ptx: str, arch: int) -> dict[str, int]:
    """Registers of a thread and bytes spilled."""
    card = f"sm_{arch}a" if arch == 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "kernel.ptx")).write_text(ptx)
        told = subprocess.run(
            [knobs.nvidia.ptxas.path, "-v", f"-arch={card}", str(path), "-o", str(path) + ".out"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    assert "serialized" not in told, told  # wgmma would wait for each product
    spilled = int(re.search(r"(\d+) bytes spill stores", told)[1])
    return {"registers": int(re.search(r"Used (\d+) registers", told)[1]), "spilled_bytes": spilled}


def widest_load_bits(ptx: str) -> int:
    loads = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max(int(count or 1) * int(bits) for count, bits in loads)


def builds(*archs: int) -> Iterator[dict[str, Any]]:
    for arch, (name, variants) in itertools.product(archs, TYPES.items()):
        borders = (False, True) if "BORDER" in getattr(kernels, name).arg_names else (False,)
        for types, border in itertools.product(variants, borders):
            ptx = build(name, types, border, arch).asm["ptx"]
            given = [tensor for tensor in ("plus", "code") if types.get(tensor)]
            row = {"kernel": name, "arch": arch, "border": border, "given": given}
            yield {**row, **assembled(ptx, arch), "widest_load_bits": widest_load_bits(ptx)}


if __name__ == "__main__":
    print(json.dumps(list(builds(*map(int, sys.argv[1:])))))
