"""swag.safetensors of a run: what the loop collects, the same after a resume, and nothing else of the run changes."""

import pytest
import torch
from comparison import run_with_cuts, same, weights
from conftest import train_in_folder
from safetensors.torch import load_file, save_file

from fastcifar.runs.model_file import load_swag

SETTINGS = {"epochs": 3, "swa_every": 1, "swag_rank": 3}


@pytest.mark.parametrize("cuts", [[19], [17, 21]])  # the tail has the steps 17 to 24
def test_a_resumed_run_writes_the_same_file(make_quick_task, tmp_path, deterministic, cuts):
    run_with_cuts(make_quick_task, tmp_path / "whole", **SETTINGS)
    run_with_cuts(make_quick_task, tmp_path / "parts", cuts, **SETTINGS)
    whole, parts = ((tmp_path / name / "swag.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_the_gaussian_lies_around_the_averaged_model(make_quick_task, tmp_path, deterministic):
    """The run trains, averages and measures what it does without the flag."""
    plain = train_in_folder(make_quick_task(epochs=3, swa_every=1), tmp_path / "plain")
    result = train_in_folder(make_quick_task(**SETTINGS), tmp_path / "swag")
    assert same(weights(plain), weights(result)) and plain.history[-1]["loss_train"] == result.history[-1]["loss_train"]
    assert not (tmp_path / "plain/swag.safetensors").exists() and plain.swag is None
    model, facts, gaussian = load_swag(tmp_path / "swag")
    assert same(model.state_dict(), weights(result)) and facts["snapshots"] == 8
    trained = {n for n, p in result.model.named_parameters() if p.requires_grad}
    assert {key.partition(".")[2] for key in gaussian} == trained and "stem.weight" not in trained
    assert all(gaussian[f"deviations.{n}"].shape == (3, *model.get_parameter(n).shape) for n in trained)
    last = torch.load(tmp_path / "swag/checkpoint.pt", weights_only=True)["state"]["model"]
    for name in trained:  # the newest deviation is that of the raw weights
        expected = last[name] - model.get_parameter(name)
        torch.testing.assert_close(gaussian[f"deviations.{name}"][-1], expected.detach(), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def swag_file(tmp_path_factory):
    return tmp_path_factory.mktemp("swag")


DAMAGE = {
    "cut": None,
    "no spread": lambda t: {k: v for k, v in t.items() if not k.startswith(("variance", "deviations"))},
    "no variances": lambda t: {k: v for k, v in t.items() if not k.startswith("variance")},
    "a variance is missing": lambda t: {k: v for k, v in t.items() if k != "variance.head.weight"},
    "a deviation is missing": lambda t: {k: v for k, v in t.items() if k != "deviations.head.weight"},
    "of a weight that is not there": lambda t: {**t, "variance.x": torch.ones(3), "deviations.x": torch.ones(3, 3)},
    "of other shape": lambda t: {**t, "variance.head.weight": torch.ones(3)},
    "of other rank": lambda t: {**t, "deviations.head.weight": t["deviations.head.weight"][:2].clone()},
    "of no rank": lambda t: {k: v[:0].clone() if k.startswith("deviations") else v for k, v in t.items()},
    "a number": lambda t: {**t, "deviations.head.weight": torch.tensor(1.0)},
    "of other dtype": lambda t: {**t, "variance.head.weight": t["variance.head.weight"].half()},
    "below 0": lambda t: {**t, "variance.head.weight": -1 - t["variance.head.weight"]},
    "not finite": lambda t: {**t, "deviations.head.weight": t["deviations.head.weight"] * float("nan")},
    "of another network": lambda t: {**t, "head.weight": torch.ones(10, 3)},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(make_quick_task, tmp_path, swag_file, damage):
    made, path = swag_file / "swag.safetensors", tmp_path / "swag.safetensors"
    if not made.exists():
        train_in_folder(make_quick_task(epochs=1, swa_start=0.0, swa_every=2, swag_rank=3), swag_file)
    if DAMAGE[damage] is None:
        path.write_bytes(made.read_bytes()[:-100])
    else:
        from safetensors import safe_open

        with safe_open(made, framework="pt") as f:
            save_file(DAMAGE[damage](load_file(made)), path, f.metadata())
    with pytest.raises(ValueError, match=r"swag\.safetensors: not a whole fastcifar SWAG file \(.+\); train") as told:
        load_swag(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_a_run_without_the_file_is_told_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="there is none; SWAG needs a run that was trained with --swag-rank"):
        load_swag(tmp_path)
