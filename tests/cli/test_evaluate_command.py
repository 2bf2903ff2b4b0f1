"""`fastcifar evaluate`: metrics, tables and pictures of a run's model on test images."""

import json

import numpy as np
import pytest
import torch
from conftest import QUICK, make_dataset
from made_runs import NAMES, assert_refused, make_run, write_arrays
from PIL import Image

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.cli.evaluate import most_confident_mistakes
from fastcifar.inference.trained_run import load_test_images, log_probabilities, read_run
from fastcifar.runs import plots
from fastcifar.runs.plots import draw_confusion, draw_mistakes

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def data(tmp_path):
    return write_arrays(tmp_path / "x.npz")


@pytest.fixture
def run(tmp_path, data):
    return make_run(tmp_path / "r", data)


@pytest.fixture
def no_pictures(monkeypatch):
    """Draws none in this test: two of them need a second of the CPU."""
    for name in ("draw_confusion", "draw_mistakes"):
        monkeypatch.setattr(plots, name, lambda *args: None)


def test_a_run_is_measured_on_the_data_it_was_trained_on(run, data, capsys):
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert cli.main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads((run / "evaluation.json").read_text())
    expected = fastcifar.evaluate(fastcifar.load(run), data, "flip-shift", 0.25)
    assert written["accuracy"] == pytest.approx(expected["accuracy"])
    assert written["nll"] == pytest.approx(expected["loss"], rel=1e-5)
    assert (written["dataset"], written["n_test"], written["views"]) == ("x", 40, True)
    assert np.array(written["confusion"]).sum() == 40 and set(written["classes"]) == set(NAMES)
    assert lines[0].endswith("x: 40 test images, 6 views (flip-shift) of the least sure 0.25 of them, fp32")
    assert f"{written['accuracy']:.2%}" in lines[1]
    assert lines[2] == "the run's own figure is 60.00%, of another device, kernel or number of processes"  # invented
    assert [line.split()[0] for line in lines[3:-1]] == ["class", *NAMES]
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(run / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
    assert all((run / name).read_bytes() == content for name, content in before.items())


@pytest.mark.parametrize(
    ("tta", "share", "precision"), [("none", 1.0, "fp32"), ("flip-shift", 0.3, "fp32"), ("flip", 1.0, "bf16")]
)
def test_a_fresh_run_is_measured_as_its_summary_says(tmp_path, capsys, no_pictures, tta, share, precision):
    """Also after other weights: the figures of two runs differ, and each is found again."""
    data, images = tmp_path / "x.npz", make_dataset(256, 400)
    np.savez(data, **{name: getattr(images, name) for name in ("x_train", "y_train", "x_test", "y_test")})
    settings = {"tta": tta} | ({} if tta == "none" else {"tta_share": share})
    figures = set()
    for seed in (0, 1):
        out = tmp_path / str(seed)
        run = fastcifar.train(QUICK, data=data, out=out, epochs=1, seed=seed, precision=precision, **settings)
        assert cli.main(["evaluate", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith(f"accuracy {run.accuracy:.2%},") and lines[2].split()[0] == "class"
        assert json.loads((out / "evaluation.json").read_text())["accuracy"] == run.accuracy
        if precision == "fp32":
            assert fastcifar.evaluate(run.model, data, tta, share)["accuracy"] == run.accuracy
        figures.add(run.accuracy)
    assert len(figures) == 2 and (tta == "none" or run.accuracy != run.summary["accuracy_one_view"])


def test_another_figure_than_that_of_the_run_is_explained(run, data, tmp_path, capsys, no_pictures):
    lines = {}
    other = str(write_arrays(tmp_path / "other.npz", n_test=20))
    for words in ((), ("--no-views",), ("--data", other), ("--no-views", "--data", other)):
        assert cli.main(["evaluate", str(run), *words, "--out", str(tmp_path / "e")]) == 0
        lines[words] = capsys.readouterr().out.splitlines()[2].removeprefix("the run's own figure is 60.00%, ")
    six = "with 6 views (flip-shift) of the least sure 0.25 of them"
    assert list(lines.values())[1:] == [six, "of other images", f"of other images, {six}"]
    half = make_run(tmp_path / "half", data, precision="fp16")
    assert cli.main(["evaluate", str(half)]) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith("60.00%, in fp16")


def test_views_data_and_folder_are_chosen_by_flags(run, tmp_path):
    other = write_arrays(tmp_path / "other.npz", n_test=20)
    before = sorted(p.name for p in run.iterdir())
    assert cli.main(["evaluate", str(run), "--data", str(other), "--no-views", "--out", str(tmp_path / "e/f")]) == 0
    written = json.loads((tmp_path / "e/f/evaluation.json").read_text())
    assert written["nll"] == pytest.approx(
        fastcifar.evaluate(fastcifar.load(run), other, views=False)["loss"], rel=1e-5
    )
    assert (written["n_test"], written["views"]) == (20, False)
    assert sorted(p.name for p in (tmp_path / "e/f").iterdir()) == ["confusion.png", "evaluation.json", "mistakes.png"]
    assert sorted(p.name for p in run.iterdir()) == before


def test_the_mistakes_come_surest_first(run):
    made = read_run(run)
    dataset = load_test_images(made, None, None)
    log_p, labels = log_probabilities(made.model, dataset, True)
    mistakes = most_confident_mistakes(dataset, log_p, labels)
    assert len(mistakes) == min(40, int((log_p.argmax(1) != labels).sum())) > 1
    shown = [m.probability for m in mistakes]
    assert shown == sorted(shown, reverse=True) and all(m.true != m.predicted for m in mistakes)
    first = next(i for i, image in enumerate(dataset.x_test) if np.array_equal(image, mistakes[0].image))
    assert dataset.classes[labels[first]] == mistakes[0].true


def test_the_recorded_subset_is_taken(tmp_path, data, capsys, no_pictures):
    run = make_run(tmp_path / "r", data, subset=20)
    assert cli.main(["evaluate", str(run)]) == 0
    assert "on x: 10 test images" in capsys.readouterr().out  # one of each class at least


def test_auto_means_what_was_found_then(tmp_path, data, monkeypatch):
    run = make_run(tmp_path / "r", data)
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = "auto"
    (run / "config.json").write_text(json.dumps(config))
    made = read_run(run)
    assert made.data is None and made.data_name == "x"
    synthetic = make_run(tmp_path / "s", tmp_path / "synthetic.npz")
    (synthetic / "config.json").write_text(json.dumps(config))
    assert read_run(synthetic).data["source"] == "synthetic"
    (synthetic / "config.json").unlink()
    assert read_run(synthetic).data == {"source": "auto"}


def test_pictures_of_odd_names_of_many_classes_and_of_no_mistake(tmp_path, recwarn):
    draw_confusion(tmp_path / "a.png", torch.eye(2).long(), ("$x$ $\\frac$", "類" * 30))
    draw_confusion(tmp_path / "b.png", torch.zeros(100, 100).long(), tuple(map(str, range(100))))
    draw_mistakes(tmp_path / "c.png", [], 0, 5)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png", "c.png")) and not recwarn.list


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "run"), (("r", "--nope"), "--nope"), (("nowhere",), "nowhere: no model.safetensors"),
        (("r", "--data", "nothing.npz"), "nothing.npz"), (("r", "--data", "few.npz"), "few: has the classes cat, dog"),
        (("r", "--out", "x.npz"), "x.npz"), (("r", "--views", "maybe"), "maybe"), (("lost",), "--data names another"),
        (("arrays",), "give --data"), (("broken",), "config.json: cannot be read"), (("cut",), "not a whole fastcifar"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(run, data, tmp_path, capfd, words, told):
    write_arrays(tmp_path / "few.npz", classes=("cat", "dog"))
    make_run(tmp_path / "lost", tmp_path / "gone.npz")
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = "auto"
    (make_run(tmp_path / "arrays", data) / "config.json").write_text(json.dumps(config))
    (make_run(tmp_path / "broken", data) / "config.json").write_text("{")
    cut = make_run(tmp_path / "cut", data) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert_refused(capfd, told, "evaluate", *words)
    now = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".cache"}
    assert {p: content for p, content in before.items() if p.suffix != ".cache"} == now
