"""How long would a training take on a card that is not here? Predicts it from the operators of one step.

    python -m bench.predict --cards a100 h100 --peers airbench94=AIRBENCH/airbench94_muon.py \
        hiverge=HIVERGE/cifar10_speedrun.py

One step is traced on the meta device: every operator with its arithmetic and the bytes that it reads and writes. An
operator takes the longer of both at the card's published rates, times an efficiency, and never less than a launch. The
efficiency of convolutions is the one free number: it is fitted to the published seconds of the first peer on an A100,
and its error on the others is printed. Nothing is measured: every line says "predicted".
"""

from __future__ import annotations

import copy
import runpy
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import tyro
from torch import nn

from bench import harness, launch
from bench.operators import Op, trace
from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.config.recipes import find_recipe
from fastcifar.models.fused import use_kernels
from fastcifar.models.networks import make_model
from fastcifar.optim.optimizers import CapturableSGD, Muon, parameter_groups
from fastcifar.optim.schedule_table import count_steps
from fastcifar.runs import record


class Card(NamedTuple):
    """Published rates of a card: dense bf16 products with fp32 sums, and memory."""

    flop_per_s: float
    bytes_per_s: float


CARDS = {
    "a100": Card(312e12, 1.555e12),  # SXM, 40 GB
    "h100": Card(989e12, 3.35e12),  # SXM
    "h200": Card(989e12, 4.8e12),
    "4090": Card(165e12, 1.008e12),
}
BANDWIDTH_EFFICIENCY = 0.8
FUSED = 0.5
"""Bytes of operators other than products that are left when a compiler fuses them: an assumption."""
LAUNCH_S = 2e-6
"""Shortest time of a kernel inside a recorded or compiled step: an assumption."""
PARTS = {"max_pool2d_with_indices": "pool", "max_pool2d_with_indices_backward": "pool",
         **dict.fromkeys(("statistics", "normalize", "gradient_sums", "input_gradient"), "fused")}  # fmt: skip
"""Part of a step that an operator is counted to."""
CONV_EFFICIENCY = 0.55
"""Used where no peer is given to fit it."""


@dataclass
class Program:
    """What is predicted: the operators of a step per image size, and how many steps of each there are."""

    name: str
    steps: dict[int, int]
    """Number of steps by image size."""
    ops: dict[int, list[Op]]
    test_ops: list[Op]
    """Operators that classify the test images."""
    compiled: bool
    published_a100_s: float | None = None


def fastcifar_program(config: Config, compiled: bool, name: str, fused: bool = False) -> Program:
    """The operators of a recipe; convolutions and linear layers in bf16, as autocast computes them.

    With `fused` pools, batch norms and activations are the kernels of `fastcifar.models.fused`.
    """
    spe = 50_000 // config.optimizer.batch_size
    num_steps = count_steps(config.epochs, spe)
    steps: dict[int, int] = defaultdict(int)
    for step in range(num_steps):
        steps[image_size(config, step // spe)] += 1
    model: Any = make_model(config.model, 10, 0)
    batch = config.optimizer.batch_size
    with torch.random.fork_rng(devices=[]):
        model = model.to("meta")
    if fused:
        use_kernels(model)
    half = _half(model)
    filters, *rest = parameter_groups(model, config.optimizer)
    rates = {"lr": config.schedule.peak, "momentum": config.optimizer.momentum}
    optimizers = [Muon([filters], **rates), CapturableSGD(rest, **rates)]

    def update() -> None:
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None
        for optimizer in optimizers:
            optimizer.step()

    ops = {size: trace(half, half, batch, size, 10, torch.bfloat16, update) for size in steps}
    test = trace(half, half, 1000, 32, 10, torch.bfloat16, None)
    views = 1 + (5 * config.evaluation.tta_share if config.evaluation.tta == "flip-shift" else 0)
    return Program(name, dict(steps), ops, test * round(10 * views), compiled)


def _half(model: nn.Module) -> nn.Module:
    """A copy whose products are in bf16, while norms keep fp32 statistics."""
    half = copy.deepcopy(model)
    for module in half.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(torch.bfloat16)
    return half


@dataclass(frozen=True)
class Peer:
    """What is known of another program: batch size, steps, and its published seconds on an A100."""

    batch: int
    steps: int
    published_a100_s: float
    test_views: float = 6.0


PEERS = {"airbench94": Peer(2000, 200, 2.59), "hiverge": Peer(1536, 243, 2.015, test_views=2.0)}
"""Steps and seconds as in their READMEs. hiverge gives further views to its least sure images only."""


def peer_program(name: str, script: Path, like: Program) -> Program:
    """The operators of another program's network, traced as ours; its update is taken to cost what ours costs."""
    known = PEERS[name]
    with mock.patch.object(torch, "compile", launch.compile_nothing), mock.patch.object(sys, "argv", [str(script)]):
        names = runpy.run_path(str(script), run_name="peer")  # it reads itself, and defines its network
    if "CifarNet" not in names:
        raise ValueError(f"{script}: defines no CifarNet; give the script of {name}")
    model = names["CifarNet"]().to("meta").to(memory_format=torch.channels_last)
    ops = trace(model, model, known.batch, 32, 10, torch.half, lambda: None)
    update = [op for op in next(iter(like.ops.values())) if op.phase == "update"]
    test = trace(model, lambda x: model(x), 2000, 32, 10, torch.half, None)
    return Program(name, {32: known.steps}, {32: ops + update}, test * round(5 * known.test_views), True,
                   known.published_a100_s)  # fmt: skip


def seconds_of(op: Op, card: Card, compiled: bool, conv_efficiency: float) -> float:
    """Predicted seconds of an operator."""
    product = op.flop > 0
    moved = op.moved * (FUSED if compiled and not product else 1.0)
    longest = max(moved / (BANDWIDTH_EFFICIENCY * card.bytes_per_s), op.flop / (conv_efficiency * card.flop_per_s))
    shortest = LAUNCH_S if product or not compiled else FUSED * LAUNCH_S
    return max(longest, shortest)


@dataclass
class Prediction:
    """Predicted seconds of a whole training with its evaluation; ms of the largest image size's step by part."""

    total_s: float
    step_ms: dict[str, float] = field(default_factory=dict)
    moved_mb: float = 0.0
    """Read and written by a step, besides products and update."""


def predict(program: Program, card: Card, conv_efficiency: float) -> Prediction:
    """Adds up the operators of all steps and of the evaluation."""

    def add(ops: list[Op]) -> float:
        return sum(seconds_of(op, card, program.compiled, conv_efficiency) for op in ops)

    total = sum(count * add(program.ops[size]) for size, count in program.steps.items()) + add(program.test_ops)
    parts: dict[str, float] = defaultdict(float)
    for op in program.ops[max(program.steps)]:
        part = "update" if op.phase == "update" else "products" if op.flop else PARTS.get(op.name, "other")
        parts[part] += 1e3 * seconds_of(op, card, program.compiled, conv_efficiency)
    rest = [op.moved for op in program.ops[max(program.steps)] if not op.flop and op.phase != "update"]
    return Prediction(total, dict(parts), sum(rest) * (FUSED if program.compiled else 1.0) / 1e6)


def fit(program: Program) -> float:
    """The efficiency of convolutions at which the prediction for an A100 equals the published seconds."""
    assert program.published_a100_s is not None
    low, high = 0.02, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        too_slow = predict(program, CARDS["a100"], middle).total_s > program.published_a100_s
        low, high = (middle, high) if too_slow else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    recipe: str = "speedrun94"
    """Recipe that is predicted, at full scale."""
    cards: tuple[str, ...] = ("a100", "h100")
    """Of a100, h100, h200, 4090."""
    peers: tuple[str, ...] = ()
    """name=script of a checkout: airbench94, hiverge. The first one is fitted."""
    out: Path = Path("bench-results/predict")
    """Folder of table.md and table.json."""


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.predict")
    try:
        unknown = [card for card in options.cards if card not in CARDS]
        if unknown:
            raise ValueError(f"card {unknown[0]!r} is unknown; known: {', '.join(CARDS)}")
        programs = load_programs(options)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    write(options, programs)
    return 0


def load_programs(options: Options) -> list[Program]:
    """The recipe step by step, with the fused kernels and compiled, and the peers."""
    config = find_recipe(options.recipe)
    config = replace(config, model=replace(config.model, scale="full"))
    kinds = (("recorded", False, False), ("recorded, fused kernels", False, True),
             ("compiled and recorded", True, False))  # fmt: skip
    programs = [fastcifar_program(config, compiled, f"fastcifar {options.recipe}, {kind}", fused)
                for kind, compiled, fused in kinds]  # fmt: skip
    for text in options.peers:
        name, _, script = text.partition("=")
        if name not in PEERS:
            raise ValueError(f"peer {name!r} is unknown; give airbench94=SCRIPT or hiverge=SCRIPT")
        programs.append(peer_program(name, Path(script), programs[0]))
    return programs


def write(options: Options, programs: list[Program]) -> None:
    """table.md and table.json."""
    peers = [program for program in programs if program.published_a100_s]
    efficiency = fit(peers[0]) if peers else CONV_EFFICIENCY
    rows, lines = [], []
    for card in options.cards:
        for program in programs:
            prediction = predict(program, CARDS[card], efficiency)
            published = program.published_a100_s if card == "a100" else None
            rows.append({"card": card, "program": program.name, "predicted_s": prediction.total_s,
                         "predicted_step_ms": prediction.step_ms, "moved_mb": prediction.moved_mb,
                         "published_s": published})  # fmt: skip
            parts = ", ".join(f"{part} {ms:.2f}" for part, ms in prediction.step_ms.items())
            error = f"{published:g} s ({prediction.total_s / published - 1:+.0%})" if published else "-"
            lines.append((card, program.name, f"predicted {prediction.total_s:.2f} s",
                          f"predicted {sum(prediction.step_ms.values()):.2f} ms: {parts}",
                          f"{prediction.moved_mb:,.0f}", error))  # fmt: skip
    fitted = f" (fitted to {peers[0].name})" if peers else ""
    note = (f"Predicted, not measured: products at {efficiency:.0%} of the published rate{fitted}, memory at "
            f"{BANDWIDTH_EFFICIENCY:.0%}.\n\n")  # fmt: skip
    header = ("card", "program", "training and evaluation", "a step of the largest image size",
              "MB besides products and update", "published (error)")  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(note + harness.markdown_table(header, lines))
    record.write_json(options.out / "table.json", {"conv_efficiency": efficiency, "rows": rows})
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
