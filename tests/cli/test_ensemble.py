"""`fastcifar ensemble`: the mean of the probabilities of runs and of their SWAG samples, beside one model."""

import json
import shutil

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
    mean, ensemble = written["table"]
    assert ensemble["accuracy"] == pytest.approx((p.argmax(1) == labels).float().mean().item())
    assert ensemble["nll"] == pytest.approx(-p[range(40), labels].log().mean().item(), rel=1e-4)
    for run, member in zip(runs, written["members"], strict=True):
        expected = fastcifar.evaluate(fastcifar.load(run), data, views=False)
        row = member["swa"]
        assert member["run"] == str(run) and row["accuracy"] == pytest.approx(expected["accuracy"])
        assert row["nll"] == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("nll", "brier"):  # both are convex: the ensemble cannot be worse than the mean member
        assert mean[name] == pytest.approx(sum(member["swa"][name] for member in written["members"]) / 3)
        assert ensemble[name] <= mean[name] and ensemble["added"][name] == ensemble[name] - mean[name]
    lines = capsys.readouterr().out.splitlines()
    words = ["model", *(word for name in ("accuracy", "NLL", "ECE", "Brier") for word in (name, "added"))]
    assert lines[0] == "x: 40 test images, no views" and lines[1].split() == words
    assert [line.split("  ")[0] for line in lines[2:]] == [*map(str, runs), "SWA, mean of 3", "Multi-SWA of 3"]
    assert f"{ensemble['nll']:.4f}  {ensemble['added']['nll']:+.4f}" in lines[-1]


def test_equal_members_are_an_ensemble_like_each(runs, capsys):
    before = {p: p.read_bytes() for p in runs[0].iterdir()}
    twin = shutil.copytree(runs[0], runs[0].with_name("twin"))
    assert cli.main(["ensemble", str(runs[0]), str(twin)]) == 0
    *rows, together = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert all(row[-4:] == rows[0][-4:] for row in rows) and together[-8::2] == rows[0][-4:]
    assert {word[1:] for word in together[-7::2]} == {"0.00", "0.0000"}
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
        (("r0", "--swag"), "r0/swag.safetensors: there is none; SWAG needs a run that was trained with --swag-rank"),
        (("r0", "r1", "--swag-samples", "0"), "--swag-samples is 0; it must be from 1 to 10,000"),
        (("r0", "--swag-samples", "10001"), "--swag-samples is 10001; it must be from 1 to 10,000"),
        (("r0", "r1", "r0"), "r0: is named twice"),
        (("r0", "r1", "r1/model.safetensors"), "r1: is named twice"),
        (("r0", "../{tmp_path.name}/r0"), "r0: is named twice"),
        (("r0", "r1", "--swag", "--swag-samples", "-1"), "--swag-samples is -1"),
    ],
)
def test_bad_input_is_told_in_one_line(runs, data, tmp_path, capfd, words, told):
    make_run(tmp_path / "turned", data, classes=NAMES[::-1])
    make_run(tmp_path / "two", data, classes=("cat", "dog"))
    make_run(tmp_path / "part", data, subset=20)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert_refused(capfd, told, "ensemble", *(word.format(tmp_path=tmp_path) for word in words))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".cache"}


def test_members_of_other_data_sets_meet_on_chosen_images(runs, data, tmp_path, capsys):
    part = make_run(tmp_path / "part", data, subset=20)
    assert cli.main(["ensemble", str(runs[0]), str(part), "--data", str(data)]) == 0
    assert "x: 40 test images" in capsys.readouterr().out


# Runs that were trained, with raw weights and a Gaussian


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Made once, by the first test that needs them."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def trained(made, data):
    folders = [made / f"t{seed}" for seed in range(2)]
    for seed, out in enumerate(folders):
        if not out.exists():
            fastcifar.train("swa30", data=data, out=out, seed=seed, scale="small", precision="fp32", epochs=4,
                            batch_size=10, swa_every=1, swag_rank=3, cache_dir=str(made))  # fmt: skip
    return folders


def mean_probability(models, images):
    return torch.stack([model.logits(images, views=True).softmax(1) for model in models]).mean(0)


def test_every_kind_of_weights_has_a_row_alone_and_together(trained, data, capsys, tmp_path):
    words = ["ensemble", *map(str, trained), "--swag-samples", "3", "--data", str(data), "--out", str(tmp_path / "e")]
    assert cli.main(words) == 0
    dataset = fastcifar.data.load.load(str(data), progress=False)
    labels = torch.as_tensor(dataset.y_test)
    rows = {row["model"]: row for row in json.loads((tmp_path / "e/ensemble.json").read_text())["table"]}
    swa, raw = ([fastcifar.load(out) for out in trained] for _ in range(2))
    for model, out in zip(raw, trained, strict=True):
        model.network.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["state"]["model"])
    swag = [list(fastcifar.swag_models(out, 3, dataset)) for out in trained]
    singles = {"one model": [[m] for m in raw], "SWA": [[m] for m in swa], "SWAG": swag}
    for name, members in singles.items():
        nll = [-mean_probability(models, dataset.x_test)[range(40), labels].log().mean().item() for models in members]
        assert rows[f"{name}, mean of 2"]["nll"] == pytest.approx(sum(nll) / 2, rel=1e-4)
    for name, members in zip(("deep ensemble", "Multi-SWA", "Multi-SWAG"), singles.values(), strict=True):
        p = mean_probability([m for models in members for m in models], dataset.x_test)
        assert rows[f"{name} of 2"]["nll"] == pytest.approx(-p[range(40), labels].log().mean().item(), rel=1e-4)
        first = rows["one model, mean of 2"]["nll"]
        assert rows[f"{name} of 2"]["added"]["nll"] == rows[f"{name} of 2"]["nll"] - first
    assert len(rows) == 6 and len(capsys.readouterr().out.splitlines()) == 2 + 2 + 6


def test_one_run_with_samples_is_swag(trained, data, capsys):
    assert cli.main(["ensemble", str(trained[0]), "--swag-samples", "2", "--data", str(data)]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["one model", "SWA", "SWAG"]


def test_samples_differ_in_weights_and_statistics_and_begin_alike(trained, data):
    dataset = fastcifar.data.load.load(str(data), progress=False)
    first, second = (model.network.state_dict() for model in fastcifar.swag_models(trained[0], 2, dataset))
    again = next(fastcifar.swag_models(trained[0], 1, dataset)).network.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    mean = fastcifar.load(trained[0]).network.state_dict()
    fixed = {key for key in mean if torch.equal(first[key], mean[key])}
    assert "stem.weight" in fixed and all(torch.equal(first[key], second[key]) for key in fixed)
    moved = [key for key in mean if "running" in key or key == "head.weight" or ".conv" in key]
    assert moved and not any(torch.equal(first[key], second[key]) or key in fixed for key in moved)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("swag.safetensors", "swag.safetensors: not a whole fastcifar SWAG file"),
        ("checkpoint.pt", "checkpoint.pt: damaged"),
        ("config.json", "config.json: cannot be read"),
    ],
)
def test_a_damaged_file_of_a_run_is_told_in_one_line(trained, data, tmp_path, capfd, name, told):
    shutil.copytree(trained[0], tmp_path / "t")
    content = (tmp_path / "t" / name).read_bytes()
    (tmp_path / "t" / name).write_bytes(content[: len(content) // 2])
    words = ["--swag-samples", 1, "--data", data]
    assert_refused(capfd, told, "ensemble", tmp_path / "t", *words)


def test_the_gaussian_of_another_run_is_refused(trained, data, tmp_path, capfd):
    """Its mean would be measured as if it were this run's."""
    shutil.copytree(trained[0], tmp_path / "t")
    shutil.copy(trained[1] / "swag.safetensors", tmp_path / "t")
    told = "t/swag.safetensors: is of another run than the model.safetensors beside it"
    assert_refused(capfd, told, "ensemble", tmp_path / "t", "--swag", "--data", data)
    with pytest.raises(ValueError, match="is of another run"):
        next(fastcifar.swag_models(tmp_path / "t", 1))
