"""`fastcifar evaluate RUN [--data ...] [--no-views] [--out DIR]`: how good a run's model is, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from fastcifar.cli.flags import parse_quietly
from fastcifar.cli.terminal import format_table
from fastcifar.data.dataset import Dataset
from fastcifar.inference import evaluation_plots
from fastcifar.inference.metrics import per_class, quality
from fastcifar.inference.trained_run import load_test_images, log_probabilities, read_run
from fastcifar.runs import record

SHOWN_MISTAKES = 40


@dataclass(frozen=True)
class Options:
    """Measures the model of a run on test images: metrics, a table by class, the confusion matrix, the mistakes."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (or its model.safetensors); in a folder of runs the newest is taken."""
    data: str | None = None
    """Data set, as --data of the training; by default the one that the run was trained on."""
    cache_dir: str | None = None
    """Where decoded data sets are kept, as --cache-dir of the training."""
    views: bool = True
    """Average the outputs for each image and its mirror: 2 views. --no-views: one, as an exported file."""
    out: Path | None = None
    """Folder for evaluation.json, confusion.png and mistakes.png; by default the run folder."""


def main(argv: Sequence[str]) -> int:
    """Prints the metrics, writes the files and returns the exit code. ValueError or OSError for bad input."""
    options = parse_quietly(Options, argv, "fastcifar evaluate")
    run = read_run(options.run)
    dataset = load_test_images(run, options.data, options.cache_dir)
    out = options.out or run.folder
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that a wrong --out is told at once
    log_p, labels = log_probabilities(run.model, dataset, options.views)
    measured = quality(log_p, labels)
    rows, confusion = per_class(log_p, labels)
    record.write_json(out / "evaluation.json", {
        "model": str(run.folder), "dataset": dataset.name, "n_test": len(labels), "views": options.views, **measured,
        "classes": dict(zip(dataset.classes, rows, strict=True)),
        "confusion": confusion.tolist(),
    })  # fmt: skip
    evaluation_plots.draw_confusion(out / "confusion.png", confusion, dataset.classes)
    mistakes = most_confident_mistakes(dataset, log_p, labels)
    evaluation_plots.draw_mistakes(out / "mistakes.png", mistakes, int((log_p.argmax(1) != labels).sum()), len(labels))

    views = "2 views (image and mirror)" if options.views else "one view"
    if run.config and (own := run.config.evaluation.views) != 1 + options.views:
        views += f"; the run's own figure takes {f'up to {own} views' if own > 1 else 'one'}"
    print(f"{run.folder} on {dataset.name}: {len(labels)} test images, {views}")
    print(f"accuracy {measured['accuracy']:.2%}, cross-entropy {measured['nll']:.4f}, calibration error "
          f"{measured['ece']:.4f}, Brier score {measured['brier']:.4f}")  # fmt: skip
    shown = [[f"{row[k]:.1%}" for k in ("precision", "recall", "f1")] for row in rows]
    table = [[name, *cells, str(row["images"])] for name, cells, row in zip(dataset.classes, shown, rows, strict=True)]
    print(format_table([["class", "precision", "recall", "F1", "images"], *table]))
    print(f"evaluation.json, confusion.png and mistakes.png in {out}")
    return 0


def most_confident_mistakes(dataset: Dataset, log_p: Tensor, labels: Tensor) -> list[evaluation_plots.Mistake]:
    """The wrongly named test images with the largest probability of the wrong class, largest first."""
    confidence, predicted = log_p.exp().max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN_MISTAKES]
    return [
        evaluation_plots.Mistake(
            dataset.x_test[i], dataset.classes[labels[i]], dataset.classes[predicted[i]], confidence[i].item()
        )
        for i in order.tolist()
    ]
