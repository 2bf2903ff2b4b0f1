"""How long would the step of today's code take on the card that was measured? A model of measured runs, and its error.

    python -m bench.time_model --out bench-results/time_model

The seconds of training of quiet runs on one card follow a line in the number of steps and of images at 32 pixels; all
runs have the same two epochs in low resolution, which are one constant with the start. The line is fitted to all runs
of a kind of code. How far it can be trusted is shown by leaving each kind of run out of the fit and predicting it. Then
comes what today's captured step would take if the part of a step that does not depend on the images followed the number
of operations in its graph, and if that part stayed as it was. The first is a hope, not a measurement. Writes table.json
and table.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from bench import harness
from bench.work import SPEEDRUN94_BEFORE
from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.runs import record

RECORDS = Path(__file__).resolve().parents[1] / "records"
RUNS = RECORDS / "2026-11-26_h100"
OPERATIONS_THEN, OPERATIONS_NOW = 232, 66
"""In the graph of a step of `speedrun94` at 32 pixels with the fused kernels: of the code that was measured (its count
is not among the records) and of today's (records/2026-11-28_cuda-stub)."""
LESS_ARITHMETIC = 0.6629 / 0.7396
"""GFLOP of an image at 32 pixels, forward and backward, today and in the code that was measured: outputs that no pool
reads are left out now (records/2026-11-28_work)."""
PREDICTED = ((7.5, 500), (8.0, 500), (8.0, 1000), (8.0, 2000))
"""Epochs and batch sizes of the runs that are predicted."""


@dataclass(frozen=True)
class Run:
    """A measured run. kind: the runs of equal settings; images: those at 32 pixels; train_s: seconds of training."""

    kind: str
    fused: bool
    steps: int
    images: int
    train_s: float

    @property
    def terms(self) -> list[float]:
        """What its seconds are a sum over: steps, images at 32 pixels, the run."""
        return [self.steps, self.images, 1.0]


def main(argv: Sequence[str] | None = None) -> int:
    options = tyro.cli(Options, args=argv, prog="python -m bench.time_model")
    runs = read_runs(options.runs)
    table = {
        name: describe([run for run in runs if run.fused == fused])
        for name, fused in (("plain torch", False), ("fused kernels", True))
    }
    predicted = [predict(table["fused kernels"]["seconds_per"], *run) for run in PREDICTED]
    record.write_json(options.out / "table.json", {"runs": str(options.runs.name), **table, "predicted_s": predicted})
    text = show(table, predicted)
    (options.out / "table.md").write_text(text)
    print(text)
    return 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the bench."""

    runs: Path = RUNS
    """Folder with one-process.jsonl and one-process-fused.jsonl: runs of one card, one after another."""
    out: Path = Path("bench-results/time_model")
    """Folder of table.json and table.md."""


def read_runs(folder: Path) -> list[Run]:
    """The captured runs of `speedrun94` by plain torch or the fused kernels, with the torch executor."""
    runs = []
    for name in ("one-process.jsonl", "one-process-fused.jsonl"):
        for row in map(json.loads, (folder / name).read_text().splitlines()):
            settings = row["variant"].replace("as it is", "")
            comparable = row["recipe"] == "speedrun94" and row["compile"] == "off" and row["augment"] == "torch"
            if comparable and "cuda_graph=false" not in settings:
                images = whole_images(parse(settings), row["num_steps"])
                kind = f"{row['num_steps']} steps, {row['epochs']:g} epochs"
                runs.append(Run(kind, row["fused_kernels"], row["num_steps"], images, row["time_s"]["train"]))
    return runs


def parse(variant: str) -> Config:
    """`speedrun94` as it was when the runs were measured, with other settings."""
    return harness.parse("speedrun94", SPEEDRUN94_BEFORE, variant)


def whole_images(config: Config, num_steps: int) -> int:
    """How many of the images that a run's steps take have 32 pixels, of 50,000 an epoch."""
    batch = config.optimizer.batch_size
    return batch * sum(image_size(config, step // (50_000 // batch)) == 32 for step in range(num_steps))


def fit(runs: Sequence[Run]) -> np.ndarray:
    """Seconds per step, per image at 32 pixels and per run: least squares of relative errors."""
    terms, seconds = np.array([run.terms for run in runs]), np.array([run.train_s for run in runs])
    scale = np.array([1e-3, 1e-6, 1.0])  # so that no column is lost in rounding
    solution, *_ = np.linalg.lstsq(terms * scale / seconds[:, None], np.ones(len(runs)), rcond=None)
    return np.asarray(solution) * scale


def describe(runs: Sequence[Run]) -> dict[str, Any]:
    """The fit, its error on each kind of run, and the error where that kind was left out of the fit.

    None for a kind without which there are fewer kinds than coefficients.
    """
    kinds = {run.kind: [r for r in runs if r.kind == run.kind] for run in runs}
    whole, errors = fit(runs), {}
    for kind, members in kinds.items():
        others = [run for run in runs if run.kind != kind]
        measured, terms = float(np.mean([run.train_s for run in members])), np.array(members[0].terms)
        without = float(terms @ fit(others) / measured - 1) if len(kinds) > len(terms) else None
        errors[kind] = {"n": len(members), "measured_s": measured, "error": float(terms @ whole / measured - 1),
                        "error_left_out": without}  # fmt: skip
    return {"seconds_per": {"step": whole[0], "image": whole[1], "run": whole[2]}, "kinds": errors}


def predict(seconds_per: dict[str, float], epochs: float, batch: int) -> dict[str, float]:
    """Seconds of training of `speedrun94` at so many epochs and this batch: of the code that was measured, and of
    today's by the two assumptions. Images cost less by their arithmetic in both, the low-resolution part what it did.
    """
    steps = round(epochs * (50_000 // batch))
    images = whole_images(parse(f"epochs={epochs} batch_size={batch}"), steps)
    of_steps, of_images = seconds_per["step"] * steps, seconds_per["image"] * images
    fewer, less = of_steps * OPERATIONS_NOW / OPERATIONS_THEN, of_images * LESS_ARITHMETIC
    return {
        "epochs": epochs, "batch": batch, "then": of_steps + of_images + seconds_per["run"],
        "step_as_it_was": of_steps + less + seconds_per["run"],
        "step_by_operations": fewer + less + seconds_per["run"],
    }  # fmt: skip


def show(table: dict[str, Any], predicted: Sequence[dict[str, float]]) -> str:
    """The tables as markdown."""
    rows = [
        (name, kind, e["n"], f"{e['measured_s']:.3f}", f"{e['error']:+.1%}",
         "-" if e["error_left_out"] is None else f"{e['error_left_out']:+.1%}")
        for name, fitted in table.items() for kind, e in fitted["kinds"].items()
    ]  # fmt: skip
    fits = []
    for name, fitted in table.items():
        step, image, run = (fitted["seconds_per"][k] for k in ("step", "image", "run"))
        fits.append(
            f"{name}: {step * 1e3:.3f} ms a step, {image * 1e6:.2f} us an image at 32 pixels, {run:.3f} s a run"
        )
    seconds = [(f"{p['epochs']:g}", p["batch"], *(f"{s:.2f}" for s in list(p.values())[2:])) for p in predicted]
    header = ("epochs", "batch", "code that was measured", "today, step as it was", "today, step by its operations")
    return "\n\n".join([
        "\n".join(f"- {text}" for text in fits),
        harness.markdown_table(("code", "kind of run", "n", "measured s", "error", "error, left out"), rows),
        "Predicted seconds of training:", harness.markdown_table(header, seconds),
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
