"""A classifier as a file that other programs run: ONNX, or the format of torch.export.

Its input is `images`, uint8 [N, 32, 32, 3] with any N from 1 up; its output is `logits`, f32 [N, K]. Normalisation is
part of the graph. Every file is loaded and run before it is kept. What a program must know to use it is in the file as
texts (`metadata`): `metadata_props` of ONNX, `extra_files` of torch.export.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.data.pixels import RESIZE
from fastcifar.files import write_atomically
from fastcifar.inference.classifier import Classifier

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Formats and how their files' names end."""
TOLERANCE = 1e-4
"""Largest difference between the logits of the file and those of the model."""
CHECKED_BATCHES = (1, 64)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export(classifier: Classifier, form: str, path: str | Path) -> float:
    """Writes the classifier to `path` and returns the largest difference of the file's logits from the classifier's.

    form: "onnx" or "torch-export". The difference is measured on random images. The file takes its place only when it
    is below `TOLERANCE`. Raises ValueError when it is not, when a package is missing, or when the exporter fails;
    OSError when the file cannot be written. Then an older file is kept.
    """
    if form not in SUFFIXES:
        raise ValueError(f"the format is {form!r}; choose from {', '.join(SUFFIXES)}")
    if form == "onnx":
        require(ONNX_PACKAGES, "pip install onnx onnxscript onnxruntime")
    classifier = classifier.cpu().eval()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        made = Path(folder) / f"model{SUFFIXES[form]}"
        try:
            _export(classifier, form, made)
            run = _load_onnx(made) if form == "onnx" else _load_torch_export(made)
            difference = _difference(classifier, run)
        except OSError:
            raise
        except Exception as e:  # the exporters raise almost anything
            reason = (str(e).splitlines() or [""])[0][:150]
            raise ValueError(f"the export as {form} failed ({type(e).__name__}: {reason})") from e
        if not difference < TOLERANCE:
            raise ValueError(f"the exported file differs from the model by {difference:.2g}, more than {TOLERANCE:g}; "
                             "nothing was written")  # fmt: skip
        content = made.read_bytes()
    write_atomically(Path(path), lambda f: f.write(content))
    return difference


def metadata(classifier: Classifier) -> dict[str, str]:
    """Class names in the order of the logits, mean and std of the channels in 0..1 (JSON), and what images to give."""
    std, mean = (classifier.std / 255).tolist(), (classifier.mean / 255).tolist()
    return {
        "classes": json.dumps(classifier.classes), "mean": json.dumps(mean), "std": json.dumps(std),
        "images": "RGB, uint8, not normalised: the graph does that with mean and std",
        "resize": f"to 32x32 pixels, as Pillow does it with Image.Resampling.{RESIZE}",
    }  # fmt: skip


def require(packages: tuple[str, ...], command: str) -> None:
    """ValueError that names the packages which are missing, and the command that installs them."""
    missing = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed; {command}")


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps the exporters' notes and warnings off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(classifier: Classifier, form: str, path: Path) -> None:
    example = _random_images(2)  # torch takes 1 for a size that never changes
    sizes = ({0: torch.export.Dim("N", min=1)},)
    program = torch.export.export(classifier, (example,), dynamic_shapes=sizes)
    if form == "onnx":
        made: Any = torch.onnx.export(program, (example,), dynamo=True, verbose=False, input_names=["images"],
                                      output_names=["logits"])  # fmt: skip
        made.model.metadata_props.update(metadata(classifier))
        made.save(path, external_data=False)
    else:
        torch.export.save(program, path, extra_files=metadata(classifier))


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    onnx.checker.check_model(os.fspath(path))
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _load_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


@torch.no_grad()
def _difference(classifier: Classifier, run: Callable[[Tensor], Tensor]) -> float:
    """Largest absolute difference of the logits, over batches of several sizes."""
    differences = []
    for batch in CHECKED_BATCHES:
        images = _random_images(batch)
        expected, got = classifier(images), run(images)
        if got.shape != expected.shape:
            raise ValueError(f"its output is {list(got.shape)} for {batch} images")
        differences.append((got - expected).abs().max().item())
    return max(differences)


def _random_images(count: int) -> Tensor:
    """uint8 [N, 32, 32, 3]."""
    return torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
