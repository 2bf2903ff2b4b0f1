"""The benches of Shake-Shake, ShakeDrop and fine-tuning; the plain twins are what they are called."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench import fine_tune, harness, shake
from fastcifar.config.config import Model
from fastcifar.data.load import load
from fastcifar.models.networks import make_model


@pytest.mark.parametrize("network", ["shakeshake26", "shakedrop"])
def test_a_plain_twin_computes_the_same_in_training_and_in_evaluation(network: str) -> None:
    """With the statistics of the batch in both, which leaves the random factors."""
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def difference(model: torch.nn.Module) -> float:
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
        with torch.no_grad():
            return (model.train()(x) - model.eval()(x)).abs().max().item()

    settings = Model(network=network, scale="small")  # type: ignore[arg-type]
    assert difference(shake.plain(make_model(settings, 10, seed=0))) < 1e-5
    assert difference(make_model(settings, 10, seed=0)) > 1e-2


def test_shake_quick(tmp_path: Path) -> None:
    flags = ["--quick", "--networks", "shakedrop", "--data", "synthetic", "--scale", "small", "--out", str(tmp_path)]
    assert shake.main(flags) == 0
    rows = harness.read_rows(tmp_path / "runs.jsonl")
    assert [row["plain"] for row in rows] == [False, True] and rows[0]["loss_last"] != rows[1]["loss_last"]
    assert shake.main(flags) == 0 and harness.read_rows(tmp_path / "runs.jsonl") == rows  # nothing is trained again
    assert "plain twin" in (tmp_path / "table.md").read_text()


def test_fine_tune_quick(tmp_path: Path) -> None:
    flags = ["--quick", "--data", "synthetic", "--scale", "small", "--out", str(tmp_path)]
    assert fine_tune.main(flags) == 0
    rows = harness.read_rows(tmp_path / "runs.jsonl")
    assert [row["way"] for row in rows] == list(fine_tune.WAYS)
    assert len({row["loss_last"] for row in rows}) == 3
    assert "--init" in (tmp_path / "table.md").read_text()


def test_fine_tune_takes_no_first_model_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(fine_tune.fastcifar, "train", lambda config, **more: begun.append({"e": config.epochs, **more}))
    few = fine_tune.of_classes(load("synthetic", subset=200, progress=False), range(5))
    for epochs in (1, 15):
        options = fine_tune.Options(runs=1, images=(10,), first_epochs=epochs, out=tmp_path, scale="small")
        next(fine_tune.jobs(few, few, options))
        folder = Path(begun[-1]["out"])
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
        next(fine_tune.jobs(few, few, options))
    assert [one["e"] for one in begun] == [1, 15]
    (folder / "summary.json").unlink()
    (folder / "config.json").touch()
    next(fine_tune.jobs(few, few, options))
    assert begun[-1]["resume"] == str(folder)
