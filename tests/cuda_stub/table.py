"""Prints what a step of each recipe asks of the card and of the host: .venv/bin/python tests/cuda_stub/table.py

On the CUDA stub: launches, copies, memsets and waits are those of a real card, save inside cuDNN and cuBLAS, of which
each call counts as one launch. Host time is of this machine, with kernels that cost nothing to launch: compare rows.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import stub

HEAD = (
    "recipe",
    "step",
    "image",
    "launches",
    "copies",
    "memsets",
    "waits",
    "in the graph",
    "batch: launches",
    "host us",
)


def main() -> int:
    if "--under-the-stub" in sys.argv:
        print(json.dumps(measure()))
        return 0
    run = stub.run_python([__file__, "--under-the-stub"], timeout_s=600)
    if run.returncode:
        print(run.stdout, run.stderr, file=sys.stderr)
        return 1
    print(f"| {' | '.join(HEAD)} |\n| {' | '.join('---' for _ in HEAD)} |")
    for row in json.loads(run.stdout.splitlines()[-1]):
        print(f"| {' | '.join(map(str, row))} |")
    return 0


def measure() -> list[list[Any]]:
    """Rows of the table."""
    from runs import host_time
    from subject import RECIPES

    rows = []
    for recipe in RECIPES:
        for recorded in (True, False):
            told = host_time(recipe, recorded)
            for size, found in told["sizes"].items():
                step = found["step"]
                copies = sum(n for name, n in step.items() if name.startswith("copies"))
                nodes = told["captured"] // len(told["sizes"])
                rows.append(
                    [
                        recipe,
                        "recorded" if told["recorded"] else "plain",
                        size,
                        step.get("launches", 0) or f"{step.get('replays', 0)} replay",
                        copies,
                        step.get("memsets", 0),
                        step.get("waits", 0),
                        nodes or "-",
                        found["batch"].get("launches", 0),
                        f"{found['us']:,.0f}",
                    ]
                )
    return rows


if __name__ == "__main__":
    sys.exit(main())
