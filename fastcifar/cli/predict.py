"""`fastcifar predict RUN IMAGE ...|FOLDER [--json]`: classes of images by the model of a run, one line per image.

`fastcifar predict IMAGE ... --run RUN` is the same.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from fastcifar.cli.flags import UsageError, parse_quietly
from fastcifar.data import checks
from fastcifar.data.messages import DataError, printable
from fastcifar.data.pixels import FORMATS, SUFFIXES, decode_image
from fastcifar.inference.classifier import load
from fastcifar.runs.model_file import find_model
from fastcifar.runs.record import to_json

RUNS = Path("runs")


@dataclass(frozen=True)
class Options:
    """Classes of images, by the model of a run. All images are read before the first line is printed."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folder (or its model.safetensors), then image files and folders of them; other sizes than 32x32 are resized.
    The run may be left out."""
    run: Path | None = None
    """The run, if the first word is not one; without either, the newest below runs/ is taken."""
    top: int = 3
    """How many classes to name for each image."""
    json: bool = False
    """Print one JSON object per image."""
    views: bool = True
    """Average the outputs for each image and its mirror: 2 views. --no-views: one, as an exported file."""


def main(argv: Sequence[str]) -> int:
    """Prints a line per image and returns the exit code. ValueError when a model or an image cannot be read."""
    options = parse_quietly(Options, argv, "fastcifar predict")
    if options.top < 1:
        raise UsageError(f"--top is {options.top}; it must be at least 1")
    run, named = which_run(options)
    model_file = find_model(run)
    model = load(model_file)
    if run == RUNS and options.run is None:
        print(f"model: {printable(str(model_file.parent))}, the newest run", file=sys.stderr)
    paths = [path for name in named for path in images_of(name)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd files; the error message alone shall be printed
        pixels = np.stack([read_image(path) for path in paths])
    best = model.predict_proba(pixels, options.views).topk(min(options.top, len(model.classes)))
    for path, values, labels in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
        print(line(str(path), [(model.classes[i], p) for p, i in zip(values, labels, strict=True)], options))
    if not options.json:
        print("2 views of each image: itself and its mirror" if options.views else "one view of each image",
              file=sys.stderr)  # fmt: skip
    return 0


def which_run(options: Options) -> tuple[Path, tuple[Path, ...]]:
    """(run, images and folders): --run, or the first word if it is one, or the folder of runs."""
    words = options.images
    run, rest = options.run, words
    if run is None and words:
        run, rest = (words[0], words[1:]) if is_run(words[0]) else (RUNS, words)
    if run is None or not rest:
        raise UsageError("no image is named; give a run, and then images or a folder of them")
    if run == RUNS and not rest[0].exists() and len(rest) > 1:
        raise UsageError(f"{rest[0]}: is neither a run nor an image")
    return run, rest


def is_run(path: Path) -> bool:
    """Whether a path is a run folder, a folder of runs or a model file."""
    if path.is_dir():
        return any((*path.glob("model.safetensors"), *path.glob("*/model.safetensors"), *path.glob("config.json")))
    return path.suffix == ".safetensors"


def images_of(path: Path) -> list[Path]:
    """The image files of a folder in order of name, without those of its folders; or the file itself."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{path}: no image in it ({', '.join(SUFFIXES)})")
    return found


def line(path: str, best: list[tuple[str, float]], options: Options) -> str:
    """The most probable classes of an image, as text or as a JSON object.

    Text has an escape for what cannot be printed in the path. JSON has its own, and one for bytes that are not UTF-8.
    """
    if not options.json:
        return f"{printable(path)}: " + ", ".join(f"{name} {p:.1%}" for name, p in best)
    classes: list[dict[str, Any]] = [{"class": name, "probability": round(p, 6)} for name, p in best]
    path = path.encode(errors="backslashreplace").decode()  # a lone surrogate is no valid text
    return to_json({"path": path, **classes[0], "top": classes, "views": 1 + options.views})


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as uint8 [32, 32, 3]. DataError when it is no PNG, JPEG, WebP or BMP image, or too large."""
    try:
        data = checks.read_limited(path, checks.MAX_PHOTO_BYTES)
    except OSError as e:
        raise DataError(f"{path}: cannot be read as an image ({e.strerror}); give another one") from e
    return decode_image(data, str(path), FORMATS, checks.MAX_PHOTO_PIXELS)[0]
