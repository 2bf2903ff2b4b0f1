"""Builds the kernels of models/forward.py and augment/stem.py for a card that is not here: forward_builds.py 90

Prints a line of JSON: registers of a thread and bytes spilled as NVIDIA's assembler tells them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcifar.augment import stem, stem_kernels
from fastcifar.models import forward, forward_kernels

X, F32 = "*bf16", "*fp32"
FIXED = {
    "bias_activation": {"ACT": "silu", "BLOCK_M": forward.BLOCK_M, "BLOCK_C": forward.BLOCK_C},
    "stem": {"ACT": "silu", "BLOCK_M": stem.BLOCK_M, "BLOCK_C": 32},
}
IMAGES = {"padded": "*u8", "table": "*i32", "mean": F32, "inv_std": F32}
BUILDS: dict[str, list[dict[str, Any]]] = {
    "bias_activation": [
        {"x": X, "plus": None, "scale": None, "bias": F32, "y": X, "POOL": True},
        {"x": X, "plus": X, "scale": F32, "bias": F32, "y": X, "POOL": False},
    ],
    "stem": [{**IMAGES, "weight": F32, "bias": F32, "y": X, "CUTOUT": cutout} for cutout in (0, 12)],
}
"""Types of the tensors, None for one that is not given, and constants; all else is a number."""


def build(name: str, given: dict[str, Any], arch: int) -> str:
    """PTX, as Triton's own launcher would specialise it: aligned tensors, channels a multiple of 16."""
    kernel = getattr(stem_kernels if name == "stem" else forward_kernels, name)
    given = FIXED[name] | given
    signature: dict[str, str] = {}
    constants, hints = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        kind = given.get(argument, "i32") if argument in given else "i32"
        if isinstance(kind, str) and kind.startswith("*"):
            hints[(i,)] = [["tt.divisibility", 16]]
        elif argument in given:
            constants[argument], kind = kind, "constexpr"
        signature[argument] = kind
        if argument == "C":
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, hints)
    options = {"num_warps": (stem if name == "stem" else forward).NUM_WARPS}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["ptx"]


def main(arch: int) -> None:
    card = f"sm_{arch}a" if arch == 90 else f"sm_{arch}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        assembly = Path(folder, "kernel.ptx")
        for name, variants in BUILDS.items():
            for given in variants:
                assembly.write_text(build(name, given, arch))
                told = subprocess.run(
                    [knobs.nvidia.ptxas.path, "-v", f"-arch={card}", str(assembly), "-o", str(assembly) + ".out"],
                    capture_output=True, text=True, check=True,
                ).stderr  # fmt: skip
                rows.append({
                    "kernel": name, "registers": int(re.search(r"Used (\d+) registers", told)[1]),
                    "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", told)[1]),
                })  # fmt: skip
    print(json.dumps(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]))
