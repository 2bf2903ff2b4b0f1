"""Every schedule and recipe trains by its name on the command line, with networks of a few channels."""

from pathlib import Path

import pytest

from fastcifar.cli import main as command
from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedules import SCHEDULES
from fastcifar.config.shapes import SHAPES
from fastcifar.models import resnet18

SETTINGS = ["--data", "synthetic", "--subset", "100", "--batch-size", "50", "--epochs", "2", "--device", "cpu",
            "--precision", "fp32"]  # fmt: skip  # bf16 takes ten times as long where a CPU has to emulate it
CASES = [["--schedule", name, *(["--val-split", "0.1"] if name == "plateau" else [])] for name in SCHEDULES]
CASES += [["--recipe", name] for name in RECIPES] + [["--norm", "gn-ws"], ["--optimizer", "sgd"]]
CASES += [["--network", name, "--scale", "small"] for name in ("resnet18", "shakeshake26", "shakedrop")]
DRAWN = {"plateau", "speedrun94", "swa30"}
"""What draws something else: accuracies on held-out images, only that of the last epoch, an averaging tail."""


@pytest.fixture
def tiny_networks(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of all scales have the few channels of the small one: a step of the wide network takes seconds."""
    for scale in SHAPES:
        monkeypatch.setitem(SHAPES, scale, SHAPES["small"])
    monkeypatch.setitem(resnet18.WIDTHS, "small", 8)


@pytest.mark.parametrize("flags", CASES, ids=" ".join)
def test_it_runs_by_name(flags: list[str], tiny_networks: None, request: pytest.FixtureRequest) -> None:
    if DRAWN & set(flags):
        request.getfixturevalue("curves")
    assert command.train([*SETTINGS, *flags, "--out", "run"]) == command.DONE
    assert Path("run/summary.json").exists()
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG") == bool(DRAWN & set(flags))
