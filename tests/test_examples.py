"""Every example runs, at smoke size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {
    "data_selection": ("--data synthetic --subset 500 --epochs 1 --runs 1", ["hardest", "random"]),
    "timm_network": ("--images 200 --epochs 2 --network test_resnet --stop-at 0.02", ["accuracy", "exported:"]),
    "walkthrough": ("--images 200 --epochs 1", ["image"] * 5 + ["first:", "second:", "both:", "exported:"]),
}
"""Flags by name, and the first words of the lines that it prints."""


NEEDS = {"timm_network": ("timm", "onnx", "onnxscript", "onnxruntime")}
"""Packages that an example imports and fastcifar does not."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name, tmp_path):
    flags, first_words = EXAMPLES[name]
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    command = [sys.executable, str(ROOT / f"examples/{name}.py"), *flags.split()]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == first_words
    if name == "timm_network":
        assert "in 2 steps, stopped: accuracy" in done.stdout and (tmp_path / "model.onnx").stat().st_size > 10_000


def test_every_example_is_tested_and_short():
    paths = list((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in paths} == set(EXAMPLES)
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) < 60 and lines[0] == "# %% [markdown]", path.name  # cells, as notebooks and editors show them


def test_the_cells_of_the_notebook_run(tmp_path):
    """All but those for a notebook alone: the installation, and the picture that it shows."""
    cells = json.loads((ROOT / "examples/first_run.ipynb").read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    smoke = """settings |= {"data": "synthetic", "subset": 500, "epochs": 1, "scale": "small", "batch_size": 50}"""
    codes = [code for code in codes if not code.startswith("%") and "IPython" not in code]
    (tmp_path / "cells.py").write_text("\n".join([codes[0], smoke, *codes[1:]]))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "cells.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("epoch 1/1 ") and lines[1].startswith("accuracy ") and "after 10 steps" in lines[2]
    assert len(lines) == 12 and lines[-1].startswith("logits of the export")
    assert (tmp_path / "first-run/curves.png").exists() and (tmp_path / "first-run/model.pt2").exists()


def test_the_image_for_containers_copies_what_is_there():
    """No test builds it: its files exist, none is ignored, and it installs the package on NVIDIA's image."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied and all((ROOT / name).exists() for name in copied) and set(copied) == kept
    (base,) = [line.split("=", 1)[1] for line in lines if line.startswith("ARG IMAGE=")]
    assert base.startswith("nvcr.io/nvidia/pytorch:") and "RUN pip install --no-cache-dir ." in "\n".join(lines)
