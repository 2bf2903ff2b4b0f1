"""The changes that CONTRIBUTING.md shows, made in a copy of the tree: each trains by its new name.

The edits are read from the page. A hunk of it must be in the code exactly once, so neither can change alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]
SHAPE = '{"stem": 24, "stages": [{"width": 8}, {"width": 8}]}'
FLAGS = [
    "--data", "synthetic", "--subset", "100", "--batch-size", "20", "--scale", "small", "--epochs", "2",
    "--device", "cpu", "--precision", "fp32", "--swa-start", "None", "--out", "run",
]  # fmt: skip
"""A run of two epochs of five steps."""
MAIN = """
import sys
from fastcifar.cli.main import train
from fastcifar.config.settings import NAMES
print(*NAMES)
if code := train(sys.argv[1:]):
    sys.exit(code)
"""
LOADED = """
import fastcifar, numpy as np
assert fastcifar.load("run").logits(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 10)
"""
GREY_BY_BOTH = """
import numpy as np, torch
from fastcifar.augment.dali import has_dali
from fastcifar.augment.executor import make_executor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw
from fastcifar.config.config import Augment
pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
images = to_device(pixels, np.arange(40), (0.5,) * 3, (0.25,) * 3, 4, torch.device("cpu"), torch.float32)
plan = draw(Augment(grey=0.5, cutout_px=8), 20, 0, 40, 0)
kinds = ["torch", "dali"] if has_dali() else ["torch"]
made = {kind: [x for x, _ in make_executor(kind, images, 8).epoch(plan)] for kind in kinds}
for kind, batches in made.items():
    grey = [(x == x[:, :1]).all(3).all(2).all(1) for x in batches]
    assert torch.equal(torch.stack(grey), plan.grey) and 5 < plan.grey.sum() < 35, kind
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(batches, made["torch"], strict=True)), kind
from fastcifar.augment import stem
stem.largest_difference = lambda *arguments: 0.0
assert not stem.works(images, torch.nn.Conv2d(3, 8, 2), "relu", 0), "the kernel leaves the new draw out"
"""


def edits_of(title: str) -> list[tuple[str, str, str]]:
    """(file, old text, new text) of every hunk below a title of the page."""
    (section,) = re.findall(rf"^### {title}\n(.*?)(?=^##)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    edits = []
    for diff in re.findall(r"^```diff\n(.*?)^```", section, re.M | re.S):
        for change in re.split(r"^\+\+\+ ", diff, flags=re.M)[1:]:
            file, *hunks = re.split(r"^@@\n", change, flags=re.M)
            for hunk in hunks:
                lines = hunk.removesuffix("\n").split("\n")
                sides = ["\n".join(line[1:] for line in lines if line[:1] in kept) for kept in (" -", " +")]
                edits.append((file.strip(), *sides))
    assert edits
    return edits


def made(title: str, copy: Path) -> None:
    """Makes the change of a section in `copy`, the tree as it is."""
    for name in ("fastcifar", "tests/config/test_config.py"):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for name, old, new in edits_of(title):
        file = copy / name
        if not old:
            assert not file.exists(), name
            file.write_text(new + "\n")
            continue
        assert file.read_text().count(old) == 1, f"{name} has this {file.read_text().count(old)} times: {old}"
        file.write_text(file.read_text().replace(old, new))


def train(copy: Path, *flags: str, then: str = "") -> Path:
    """The folder of a run in the copy, whose flags are those of its frozen list. `then` is run after it."""
    environment = {**os.environ, "FASTCIFAR_CACHE": str(copy / "cache")}
    command = [sys.executable, "-c", MAIN + then, *FLAGS, *flags]
    done = warm.run(command, cwd=copy, env=environment, package=copy)
    assert done.returncode == 0, done.stderr[-2000:]
    (listed,) = re.findall(r'^FLAGS = """(.*?)"""', (copy / "tests/config/test_config.py").read_text(), re.M | re.S)
    assert set(done.stdout.splitlines()[0].split()) == set(listed.split())
    return copy / "run"


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_schedule(tmp_path):
    made("A schedule", tmp_path)
    run = train(tmp_path, "--schedule", "polynomial", "--lr-peak", "0.1", "--power", "3", "--shape", SHAPE)
    assert [row["lr"] for row in rows(run)] == pytest.approx([0.1 * (1 - step / 10) ** 3 for step in (4, 9)])


def test_a_recipe(tmp_path):
    made("A recipe", tmp_path)
    run = train(tmp_path, "--recipe", "linear20", "--shape", SHAPE)
    config = json.loads((run / "config.json").read_text())
    assert (config["run"]["recipe"], config["schedule"]["name"], config["tail"]) == ("linear20", "linear", None)
    assert [row["lr"] for row in rows(run)] == pytest.approx([0.12 * (1 - step / 9) for step in (4, 9)])


def test_a_network(tmp_path):
    made("A network", tmp_path)
    run = train(tmp_path, "--network", "plain", then=LOADED)
    assert json.loads((run / "config.json").read_text())["model"]["network"] == "plain" and len(rows(run)) == 2
    assert (run / "model.safetensors").stat().st_size < 10_000  # it is no resnet9


def test_an_augmentation(tmp_path):
    """The same images by DALI and by torch, and a run with it."""
    made("An augmentation", tmp_path)
    run = train(tmp_path, "--grey", "0.5", "--shape", SHAPE, then=GREY_BY_BOTH)
    assert json.loads((run / "config.json").read_text())["augment"]["grey"] == 0.5 and len(rows(run)) == 2


def test_a_logger(tmp_path):
    made("A logger", tmp_path)
    run = train(tmp_path, "--log", "csv", "--shape", SHAPE)
    logged = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    assert [(int(step), float(loss)) for step, loss in logged] == [
        (row["step"], row["loss_train"]) for row in rows(run)
    ]


def test_every_change_on_the_page_is_made_here():
    titles = re.findall(r"^### (.+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    tests = {name for name in globals() if name.startswith("test_a")}
    assert {f"test_{title.lower().replace(' ', '_')}" for title in titles} == tests


def test_the_page_may_not_differ_from_the_code(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "edits_of", lambda _: [("fastcifar/files.py", "no such line", "x")])
    with pytest.raises(AssertionError, match=r"fastcifar/files.py has this 0 times"):
        made("A logger", tmp_path)
