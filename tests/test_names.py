"""Every schedule and recipe trains by its name on the command line."""

from pathlib import Path

import pytest

from fastcifar.cli import main as command
from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedules import SCHEDULES

SETTINGS = ["--data", "synthetic", "--subset", "100", "--batch-size", "50", "--epochs", "2", "--device", "cpu",
            "--precision", "fp32"]  # fmt: skip  # bf16 takes ten times as long where a CPU has to emulate it
CASES = [["--schedule", name, *(["--val-split", "0.1"] if name == "plateau" else [])] for name in SCHEDULES]
CASES += [["--recipe", name] for name in RECIPES] + [["--norm", "gn-ws"], ["--optimizer", "sgd"]]
CASES += [["--network", name, "--scale", "small"] for name in ("resnet18", "shakeshake26", "shakedrop")]
DRAWN = {"plateau", "speedrun94", "swa30"}
"""What draws something else: accuracies on held-out images, only that of the last epoch, an averaging tail."""


@pytest.mark.parametrize("flags", CASES, ids=" ".join)
def test_it_runs_by_name(flags: list[str], tmp_path: Path, tiny_network: None, request: pytest.FixtureRequest) -> None:
    if DRAWN & set(flags):
        request.getfixturevalue("curves")
    out = tmp_path / "run"
    assert command.train([*SETTINGS, *flags, "--cache-dir", str(tmp_path / "cache"), "--out", str(out)]) == command.DONE
    assert (out / "summary.json").exists()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") == bool(DRAWN & set(flags))
