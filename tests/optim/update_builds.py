"""Builds the kernels of the update and of the loss for cards that are not here: python update_builds.py 90

Prints a line of JSON: registers of a thread, bytes spilled and shared memory as NVIDIA's assembler and Triton tell
them, and whether Hopper's products of whole warp groups (wgmma) are used.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triton import compile as build
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcifar.models import head_kernels, head_loss
from fastcifar.optim import fused_update, kernels

X, F32, I32 = "*bf16", "*fp32", "*i32"
MUON = {
    "weights": F32, "low": X, "momenta": F32, "updates": X, "grads": (X,) * 5, "squares": F32, "items": I32,
    "row": F32, "shapes": I32, "grams": F32, "matrices": X, "lr_scale": "fp32", "a": "fp32", "b": "fp32", "c": "fp32",
}  # fmt: skip
SGD = {"grads": (X, *(F32,) * 8), "head_grads": F32, "rates": F32, "losses": F32, "loss_sum": F32, "counters": "*i64"}
HEAD = {"features": X, "weight": F32, "labels": "*i64", "d_features": X, "d_weight": F32, "losses": F32,
        "scale": "fp32", "smoothing": "fp32"}  # fmt: skip
TAKE = {
    "images": X,
    "labels": "*i64",
    "rows": "*i64",
    "table": F32,
    "counters": "*i64",
    "x": X,
    "y": "*i64",
    "row": F32,
}
BLOCK = fused_update.BLOCK
STEPS = {"SPLITS": 4, "STEPS": 3, "BLOCK": BLOCK}
CASES: list[tuple[Any, str, dict[str, Any], dict[str, Any]]] = [
    (kernels, "take", TAKE, {"BLOCK": 2048}),
    (kernels, "prepare", MUON, {"unit": 8, "BLOCK": BLOCK}),
    (kernels, "sgd", MUON | SGD, {"COUNT": 9, "BLOCK": BLOCK}),
    *((head_kernels, "head_loss", HEAD, {"pixels": pixels, "BLOCK_B": head_loss.BLOCK_B, "BLOCK_K": classes,
                                         "BLOCK_C": head_loss.BLOCK_C})
      for pixels, classes in ((9, 16), (4, 16), (9, 128))),
    *((kernels, name, MUON, {"unit": unit, "TALL": False, "TILE": tile, "BK": bk, **more})
      for name, unit, tile, bk, more in (
          ("gram", 16, 64, 64, {}), ("gram", 8, 16, 64, {}), ("gram", 1, 64, 64, {}),
          ("steps", 16, 128, 64, STEPS), ("steps", 8, 64, 64, STEPS),
          ("steps", 8, 16, 16, STEPS),
          *(("apply", unit, tile, tile, {"SLOT": 2, "COLUMNS": 128, "BLOCK": BLOCK})
            for unit, tile in ((16, 64), (8, 64), (1, 16))),
      )),
]  # fmt: skip
"""File, name, types of the tensors, constants. All arguments without a type are whole numbers."""


def builds(*archs: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        assembly = Path(folder, "kernel.ptx")
        for arch in archs:
            for module, name, types, fixed in CASES:
                built, warps = build_one(module, name, types, fixed, arch)
                assembly.write_text(built.asm["ptx"])
                told = subprocess.run(
                    [knobs.nvidia.ptxas.path, "-v", f"-arch=sm_{arch}{'a' if arch == 90 else ''}", str(assembly), "-o",
                     str(assembly) + ".out"], capture_output=True, text=True, check=True,
                ).stderr  # fmt: skip
                yield {
                    "kernel": name, "arch": arch, "warps": warps, "constants": fixed,
                    "registers": int(re.search(r"Used (\d+) registers", told)[1]),
                    "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", told)[1]),
                    "shared_bytes": built.metadata.shared, "wgmma": "wgmma" in built.asm["ptx"],
                }  # fmt: skip


def build_one(module: Any, name: str, types: dict[str, Any], fixed: dict[str, Any], arch: int) -> tuple[Any, int]:
    """As Triton's own launcher would specialise it: aligned tensors, sizes a multiple of 16."""
    kernel, signature, hints = getattr(module, name), {}, {}
    constants = {argument: fixed[argument] for argument in kernel.arg_names if argument in fixed}
    for i, argument in enumerate(kernel.arg_names):
        signature[argument] = kind = "constexpr" if argument in constants else types.get(argument, "i32")
        for path in [(i, j) for j in range(len(kind))] if isinstance(kind, tuple) else [(i,)]:
            if kind[0] == "*" or isinstance(kind, tuple) or argument in ("rows", "span", "C"):
                hints[path] = [["tt.divisibility", 16]]
    warps = 8 if fixed.get("TILE") == 128 else 4
    options = {"num_warps": warps} | ({"num_stages": 1} if module is head_kernels else {})
    source = ASTSource(kernel, signature, constants, hints)
    return build(source, target=GPUTarget("cuda", arch, 32), options=options), warps


if __name__ == "__main__":
    print(json.dumps(list(builds(*map(int, sys.argv[1:])))))
