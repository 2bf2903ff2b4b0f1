"""Every example runs, at smoke size."""

import json
import runpy
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


@pytest.fixture
def run(tmp_path, tiny_network, monkeypatch, capsys):
    """Runs a program in this process, in a folder of its own, and returns the lines that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "cache"))

    def main(path, *flags):
        monkeypatch.setattr("sys.argv", [str(path), *flags])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return main


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name, run):
    flags, first_words = EXAMPLES[name]
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    lines = run(ROOT / f"examples/{name}.py", *flags.split())
    assert [line.split()[0] for line in lines] == first_words
    if name == "timm_network":
        assert "in 2 steps, stopped: accuracy" in lines[0] and Path("model.onnx").stat().st_size > 10_000


def test_every_example_is_tested_and_short():
    paths = list((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in paths} == set(EXAMPLES)
    for path in paths:
        lines = path.read_text().splitlines()
        assert len(lines) < 60 and lines[0] == "# %% [markdown]", path.name  # cells, as notebooks and editors show them


def test_the_cells_of_the_notebook_run(run):
    """All but those for a notebook alone: the installation, and the picture that it shows."""
    cells = json.loads((ROOT / "examples/first_run.ipynb").read_text())["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    smoke = """settings |= {"data": "synthetic", "subset": 500, "epochs": 1, "scale": "small", "batch_size": 50}"""
    codes = [code for code in codes if not code.startswith("%") and "IPython" not in code]
    Path("cells.py").write_text("\n".join([codes[0], smoke, *codes[1:]]))
    lines = [line for line in run("cells.py") if not line.startswith("note:")]  # if the average is worse, one says so
    assert lines[0].startswith("epoch 1/1 ") and lines[1].startswith("accuracy ") and "after 10 steps" in lines[2]
    assert len(lines) == 12 and lines[-1].startswith("logits of the export")
    assert Path("first-run/curves.png").exists() and Path("first-run/model.pt2").exists()


def test_the_image_for_containers_copies_what_is_there():
    """No test builds it: its files exist, none is ignored, and it installs the package on NVIDIA's image."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied and all((ROOT / name).exists() for name in copied) and set(copied) == kept
    (base,) = [line.split("=", 1)[1] for line in lines if line.startswith("ARG IMAGE=")]
    assert base.startswith("nvcr.io/nvidia/pytorch:") and "RUN pip install --no-cache-dir ." in "\n".join(lines)
