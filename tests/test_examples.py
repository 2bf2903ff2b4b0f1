"""Every example runs, at smoke size."""

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
        assert "in 1 epochs, stopped: accuracy" in done.stdout and (tmp_path / "model.onnx").stat().st_size > 10_000


def test_every_example_is_tested_and_short():
    paths = list((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in paths} == set(EXAMPLES)
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) < 60 and lines[0] == "# %% [markdown]", path.name  # cells, as notebooks and editors show them
