"""`fastcifar evaluate RUN [--data ...] [--no-views] [--out DIR]`: how good a run's model is, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from fastcifar.cli.flags import parse_quietly
from fastcifar.cli.terminal import format_table
from fastcifar.config.config import Evaluation
from fastcifar.data.dataset import Dataset
from fastcifar.inference.metrics import per_class, quality
from fastcifar.inference.trained_run import load_test_images, log_probabilities, read_run
from fastcifar.runs import plots, record

SHOWN_MISTAKES = 40


@dataclass(frozen=True)
class Options:
    """Measures the model of a run on test images: metrics, a table by class, the confusion matrix, the mistakes."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (or its model.safetensors); in a folder of runs the newest is taken."""
    data: str | None = None
    """Data set, as --data of the training; by default the one that the run was trained on."""
    test_split: float = 0.0
    """With --data: fraction of each class that becomes the test images of a set without any, as --test-split of the
    training."""
    cache_dir: str | None = None
    """Where decoded data sets are kept, as --cache-dir of the training."""
    views: bool = True
    """Views of each image as in the run's own figure (--tta of the training). --no-views: one, as an exported file."""
    out: Path | None = None
    """Folder for evaluation.json, confusion.png and mistakes.png; by default the run folder."""


def main(argv: Sequence[str]) -> int:
    """Prints the metrics, writes the files and returns the exit code. ValueError or OSError for bad input."""
    options = parse_quietly(Options, argv, "fastcifar evaluate")
    run = read_run(options.run)
    dataset = load_test_images(run, options.data, options.cache_dir, options.test_split)
    out = options.out or run.folder
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that a wrong --out is told at once
    views = run.evaluation if options.views else Evaluation()
    precision = run.precision if run.precision != "fp16" or torch.cuda.is_available() else "fp32"
    log_p, labels = log_probabilities(run.model, dataset, views.tta, views.tta_share, precision)
    measured = quality(log_p, labels)
    rows, confusion = per_class(log_p, labels)
    record.write_json(out / "evaluation.json", {
        "model": str(run.folder), "dataset": dataset.name, "n_test": len(labels), "views": options.views,
        "tta": views.tta, "tta_share": views.tta_share, "precision": precision, **measured,
        "classes": dict(zip(dataset.classes, rows, strict=True)),
        "confusion": confusion.tolist(),
    })  # fmt: skip
    plots.draw_confusion(out / "confusion.png", confusion, dataset.classes)
    mistakes = most_confident_mistakes(dataset, log_p, labels)
    plots.draw_mistakes(out / "mistakes.png", mistakes, int((log_p.argmax(1) != labels).sum()), len(labels))

    print(f"{run.folder} on {dataset.name}: {len(labels)} test images, {views_text(views)}, {precision}")
    print(f"accuracy {measured['accuracy']:.2%}, cross-entropy {measured['nll']:.4f}, calibration error "
          f"{measured['ece']:.4f}, Brier score {measured['brier']:.4f}")  # fmt: skip
    if run.accuracy not in (None, measured["accuracy"]):
        then = views_text(run.evaluation)
        differences = {"of other images": options.data is not None, f"with {then}": then != views_text(views),
                       f"in {run.precision}": precision != run.precision}  # fmt: skip
        told = ", ".join(text for text, is_so in differences.items() if is_so)
        print(
            f"the run's own figure is {run.accuracy:.2%}, {told or 'of another device, kernel or number of processes'}"
        )
    shown = [[f"{row[k]:.1%}" for k in ("precision", "recall", "f1")] for row in rows]
    table = [[name, *cells, str(row["images"])] for name, cells, row in zip(dataset.classes, shown, rows, strict=True)]
    print(format_table([["class", "precision", "recall", "F1", "images"], *table]))
    print(f"evaluation.json, confusion.png and mistakes.png in {out}")
    return 0


def views_text(evaluation: Evaluation) -> str:
    """The views of an image, and which images get them."""
    count, share = evaluation.views, evaluation.tta_share
    text = "one view" if count == 1 else f"{count} views ({evaluation.tta})"
    return text if count == 1 or share == 1 else f"{text} of the least sure {share:.3g} of them"


def most_confident_mistakes(dataset: Dataset, log_p: Tensor, labels: Tensor) -> list[plots.Mistake]:
    """The wrongly named test images with the largest probability of the wrong class, largest first."""
    confidence, predicted = log_p.exp().max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN_MISTAKES]
    return [
        plots.Mistake(
            dataset.x_test[i], dataset.classes[labels[i]], dataset.classes[predicted[i]], confidence[i].item()
        )
        for i in order.tolist()
    ]
