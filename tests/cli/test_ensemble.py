"""`fastcifar ensemble`: the mean of the members' probabilities, measured beside each member."""

import json

import pytest
import torch
from made_runs import NAMES, assert_refused, make_run, write_arrays

import fastcifar
from fastcifar.cli import main as cli

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def data(tmp_path):
    return write_arrays(tmp_path / "x.npz")


@pytest.fixture
def runs(tmp_path, data):
    return [make_run(tmp_path / f"r{seed}", data, seed) for seed in range(3)]


def test_the_ensemble_is_the_mean_of_the_probabilities(runs, data, capsys, tmp_path):
    assert cli.main(["ensemble", *map(str, runs), "--no-views", "--out", str(tmp_path / "e")]) == 0
    written = json.loads((tmp_path / "e/ensemble.json").read_text())
    dataset = fastcifar.data.load.load(str(data), progress=False)
    labels = torch.as_tensor(dataset.y_test)
    p = torch.stack([fastcifar.load(run).logits(dataset.x_test).softmax(1) for run in runs]).mean(0)
    assert written["ensemble"]["accuracy"] == pytest.approx((p.argmax(1) == labels).float().mean().item())
    assert written["ensemble"]["nll"] == pytest.approx(-p[range(40), labels].log().mean().item(), rel=1e-4)
    for run, row in zip(runs, written["members"], strict=True):
        expected = fastcifar.evaluate(fastcifar.load(run), data, views=False)
        assert row["run"] == str(run) and row["accuracy"] == pytest.approx(expected["accuracy"])
        assert row["nll"] == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("nll", "brier"):  # both are convex: the ensemble cannot be worse than the mean member
        assert written["mean"][name] == pytest.approx(sum(row[name] for row in written["members"]) / 3)
        assert written["ensemble"][name] <= written["mean"][name]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x: 40 test images, no views" and lines[1].split() == [
        "model",
        "accuracy",
        "NLL",
        "ECE",
        "Brier",
    ]
    assert [line.split()[0] for line in lines[2:]] == [*map(str, runs), "mean", "ensemble"]
    assert f"{written['ensemble']['nll']:.4f}" in lines[-1]


def test_equal_members_are_an_ensemble_like_each(runs, capsys):
    before = {p: p.read_bytes() for p in runs[0].iterdir()}
    assert cli.main(["ensemble", str(runs[0]), str(runs[0])]) == 0
    values = [line.split()[-4:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert all(row == values[0] for row in values)
    assert {p: p.read_bytes() for p in runs[0].iterdir()} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "at least two members"),
        (("r0",), "at least two members"),
        (("r0", "nowhere"), "nowhere: no model.safetensors"),
        (("r0", "turned"), "r0 knows the classes airplane"),
        (("r0", "two"), "but two cat, dog; members need the same"),
        (("r0", "part"), "other data sets or subsets; give --data"),
        (("r0", "r1", "--data", "no.npz"), "no.npz"),
        (("r0", "r1", "--out", "x.npz"), "x.npz"),
        (("r0", "r1", "--top", "3"), "--top"),
    ],
)
def test_bad_input_is_told_in_one_line(runs, data, tmp_path, capfd, words, told):
    make_run(tmp_path / "turned", data, classes=NAMES[::-1])
    make_run(tmp_path / "two", data, classes=("cat", "dog"))
    make_run(tmp_path / "part", data, subset=20)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert_refused(capfd, told, "ensemble", *words)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".cache"}


def test_members_of_other_data_sets_meet_on_chosen_images(runs, data, tmp_path, capsys):
    part = make_run(tmp_path / "part", data, subset=20)
    assert cli.main(["ensemble", str(runs[0]), str(part), "--data", str(data)]) == 0
    assert "x: 40 test images" in capsys.readouterr().out
