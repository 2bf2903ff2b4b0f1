"""`fastcifar export RUN --format onnx|torch-export [--out FILE]`: a run's model as a file for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastcifar.cli.options import parse_quietly
from fastcifar.runs import export
from fastcifar.runs.classifier import find_model, load


@dataclass(frozen=True)
class Options:
    """Writes the model of a run, normalisation included, as a file that other programs run, and checks that file."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (or its model.safetensors); in a folder of runs the newest is taken."""
    format: Literal["onnx", "torch-export"]
    """ONNX, or an archive of torch.export for `torch.export.load`."""
    out: Path | None = None
    """The file; by default model.onnx or model.pt2 in the run folder."""


def main(argv: Sequence[str]) -> int:
    """Writes the file and returns the exit code. ValueError or OSError when that is not possible."""
    options = parse_quietly(Options, argv, "fastcifar export")
    source = find_model(options.run)
    classifier = load(source)
    path = options.out or source.with_name("model" + export.SUFFIXES[options.format])
    if path.is_dir() or path.resolve() == source.resolve():
        raise ValueError(f"--out {path}: is a folder or the model itself; name another file")
    difference = export.export(classifier, options.format, path)
    count = len(classifier.classes)
    print(f"{path}: images uint8 [N, 32, 32, 3] -> logits float32 [N, {count}], {path.stat().st_size / 1e6:.1f} MB")
    print(f"loaded and run: its logits differ from those of the model by at most {difference:.1e}")
    return 0
