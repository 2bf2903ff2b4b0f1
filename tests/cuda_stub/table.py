"""Prints what each recipe asks of the card and of the host: .venv/bin/python tests/cuda_stub/table.py [RECIPE ...]

With the batch size of the recipe and 50,000 images of noise. On the CUDA stub: launches, copies, memsets and waits are
those of a real card, save inside cuDNN and cuBLAS, of which each call counts as one launch. Host time is CPU time on
this machine, with kernels that cost nothing to launch, the least of all steps or of some epochs: compare rows. The host
time of a block covers the random draws of an epoch, making its block ahead, and taking it.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from contextlib import nullcontext
from typing import Any
from unittest import mock

import stub

STEPS = ("recipe", "step", "image", "launches", "copies", "memsets", "waits", "in the graph", "host us")
BLOCKS = ("recipe", "step", "image", "steps of a block", "taken: launches, copies, waits",
          "made: launches, copies, waits", "host us", "host us / steps",
          "end of an epoch: launches, copies, waits")  # fmt: skip
PARTS = ("epoch", "average", "final")
EVALUATIONS = ("recipe", "step", *(f"{part}: launches, copies, waits, replays" for part in PARTS), "host us",
               "to record: launches, operations, host us")  # fmt: skip
UPDATES = ("recipe", "step", "optimizer: launches, copies, memsets", "averaging: launches, copies, memsets",
           "host us")  # fmt: skip
IMAGES, TEST_IMAGES = 50_000, 10_000
KINDS = ((True, True), (True, False), (False, False))
"""Whether the step is recorded, and whether it has the fused kernels."""


def main() -> int:
    if "--under-the-stub" in sys.argv:
        print(json.dumps(measure(sys.argv[2:])))
        return 0
    run = stub.run_python([__file__, "--under-the-stub", *sys.argv[1:]], timeout_s=1800)
    if run.returncode:
        print(run.stdout, run.stderr, file=sys.stderr)
        return 1
    command = " ".join([".venv/bin/python tests/cuda_stub/table.py", *sys.argv[1:]])
    print(f"`{command}`, {IMAGES:,} images, {platform.machine()}, {stub.cpu_name()}\n")
    titles = ("A step", "A block and the end of an epoch", "Inside a step, of the full or wide network",
              f"Evaluations of {TEST_IMAGES:,} images, the average of the weights and the refresh")  # fmt: skip
    heads = (STEPS, BLOCKS, UPDATES, EVALUATIONS)
    for title, head, rows in zip(titles, heads, json.loads(run.stdout.splitlines()[-1]), strict=True):
        print(f"## {title}\n\n| {' | '.join(head)} |\n| {' | '.join('---' for _ in head)} |")
        for row in rows:
            print(f"| {' | '.join(map(str, row))} |")
        print()
    return 0


def measure(names: list[str]) -> tuple[list[list[Any]], ...]:
    """Rows of the four tables, of the recipes of those names or of all."""
    import torch
    from agreeing_kernels import agreeing_kernels
    from observe import make_task, watch_run
    from runs import evaluation, host_time
    from subject import RECIPES

    steps, blocks, updates, evaluations = [], [], [], []
    for precision, recipes in (("bf16", RECIPES), ("fp16", ("speedrun94", "onecycle30"))):
        for recipe, (recorded, fused) in itertools.product(recipes, KINDS):
            if names and recipe not in names:
                continue
            settings: dict[str, Any] = {"precision": precision, "fused_kernels": fused}
            batch = RECIPES[recipe].optimizer.batch_size
            told = host_time(recipe, recorded, images=IMAGES, batch_size=batch, **settings)
            kind = ("recorded" if told["recorded"] else "plain") + (", fused kernels" if told["fused"] else "")
            kind += ", fp16" if precision == "fp16" else ""
            # kernels that do nothing leave a loss scale of no meaning
            scale = mock.patch.object(torch.amp.GradScaler, "get_scale", return_value=1.0)
            with scale, agreeing_kernels() if fused else nullcontext():
                run = watch_run(make_task(recipe, cuda_graph=recorded, eval_every=99, **settings))
            end = triple(run["blocks"][0]["end"]["counted"], "waits")
            for size, found in told["sizes"].items():
                step, block = found["step"], found["block"]
                steps.append([recipe, kind, size, step.get("launches", 0) or f"{step.get('replays', 0)} replay",
                              copies(step), step.get("memsets", 0), step.get("waits", 0),
                              told["captured"] // told["forms"] or "-", f"{found['step_us']:,.0f}"])  # fmt: skip
                taken = add(block["next"], block["begin"])
                blocks.append([recipe, kind, size, found["num_steps"], triple(taken, "waits"),
                               triple(block["ahead"], "waits"), f"{found['block_us']:,.0f}",
                               f"{found['block_us'] / found['num_steps']:,.0f}", end])  # fmt: skip
            by_optimizer = [f"{update['name']} {triple(update['counted'], 'memsets')}" for update in told["updates"]]
            updates.append([recipe, kind, "; ".join(by_optimizer), triple(told["average"], "memsets"),
                            f"{told['average_us']:,.0f}"])  # fmt: skip
            if fused:
                continue
            told = evaluation(recipe, recorded, TEST_IMAGES, images=IMAGES, batch_size=batch, **settings)
            row = [recipe, kind]
            row += [f"{triple(told[part], 'waits')}, {told[part].get('replays', 0)}" for part in PARTS]
            row.append(" + ".join(f"{told[f'{part}_us']:,.0f}" for part in PARTS))
            cost = add(told["recording"], told["recording refresh"])
            made = f"{cost.get('launches', 0)}, {cost.get('captured', 0)}, {cost['us']:,.0f}" if recorded else "-"
            evaluations.append([*row, made])
    return steps, blocks, updates, evaluations


def copies(counted: dict[str, int]) -> int:
    return sum(n for name, n in counted.items() if name.startswith("copies"))


def triple(counted: dict[str, int], last: str) -> str:
    return f"{counted.get('launches', 0)}, {copies(counted)}, {counted.get(last, 0)}"


def add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {*a, *b}}


if __name__ == "__main__":
    sys.exit(main())
