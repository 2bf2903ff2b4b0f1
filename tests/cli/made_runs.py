"""Run folders without a training, and images that their models know, for the tests of what is done with a run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import make_dataset

from fastcifar.cli import main as cli
from fastcifar.config.config import Model
from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import with_settings
from fastcifar.models.networks import make_model
from fastcifar.runs import record
from fastcifar.runs.config_file import config_to_plain
from fastcifar.runs.model_file import write_model

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_arrays(path: Path, classes: tuple[str, ...] = NAMES, n_test: int = 40) -> Path:
    """An .npz of images of those classes."""
    data = make_dataset(40, n_test)
    np.savez(path, x_train=data.x_train, y_train=data.y_train % len(classes), x_test=data.x_test,
             y_test=data.y_test % len(classes), classes=np.array(classes))  # fmt: skip
    return path


def make_run(folder: Path, data: Path, seed: int = 0, classes: tuple[str, ...] = NAMES, **settings: Any) -> Path:
    """A run folder with random weights of a tiny network (the test needs the fixture `tiny_network`)."""
    config = with_settings(RECIPES["swa30"], scale="small", seed=seed, data=str(data), epochs=3,
                           cache_dir=str(data.parent), **settings)  # fmt: skip
    model = make_model(Model(scale="small"), len(classes), seed=seed)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    facts = {"classes": classes, "mean": [0.5] * 3, "std": [0.25] * 3, "dataset": data.stem, "network": "resnet9",
             "norm": "bn", "activation": "relu", "scale": "small", "accuracy": 0.6,
             "accuracy_one_view": 0.58, "views": 6}  # fmt: skip
    write_model(folder / "model.safetensors", model, facts)
    record.write_json(folder / "config.json", config_to_plain(config))
    rows = [
        {"epoch": e + 1, "step": 10 * (e + 1), "phase": "cycle", "lr": 0.1, "momentum": 0.9,
         "loss_train": 2.0 / (e + 1 + seed), "accuracy_test": 0.2 * (e + 1), "time_s": 1.0 + e} for e in range(3)
    ]  # fmt: skip
    record.write_lines(folder / "metrics.jsonl", rows)
    record.write_json(folder / "summary.json", {
        "dataset": data.stem, "n_train": 40, "n_test": 40, "epochs": 3.0, "num_steps": 30, "accuracy": 0.6,
        "accuracy_raw": 0.6, "accuracy_swa": 0.58, "accuracy_tta": None, "views": 6,
        "loss_last": rows[-1]["loss_train"], "device": "a CPU", "precision": "fp32", "versions": {"fastcifar": "0.2.0"},
        "time_s": {"train": 3.0, "wall": 5.0},
    })  # fmt: skip
    return folder


def assert_refused(capfd: Any, told: str, *words: object) -> None:
    """The command ends with 2 and one line on stderr that says `told`; stdout stays empty."""
    capfd.readouterr()
    code = cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), (code, out, err)
    assert err.startswith("error: ") and told in err and len(err) < 1200, err
