"""`fastcifar predict RUN IMAGE ...|FOLDER`: whole folders, JSON, and bad images that are told before anything else."""

import json

import numpy as np
import pytest
from made_runs import NAMES, assert_refused, make_run
from PIL import Image

import fastcifar
from fastcifar.cli import main as cli

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs/r", tmp_path / "x.npz")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures/more").mkdir(parents=True)
    for i, name in enumerate(("b.PNG", "a.jpg", "c.bmp", "more/d.png", ".hidden.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures/notes.txt").write_text("no image")
    return tmp_path / "pictures"


def test_a_folder_is_every_image_in_it(run, folder, capsys):
    assert cli.main(["predict", str(run), str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(folder / n) for n in ("a.jpg", "b.PNG", "c.bmp")]


def test_a_json_object_per_image_agrees_with_python(run, folder, capsys):
    paths = [folder / "c.bmp", folder / "b.PNG"]
    assert cli.main(["predict", str(run), *map(str, paths), "--json", "--top", "2"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names, probability = fastcifar.load(run).predict(np.stack([np.asarray(Image.open(p)) for p in paths]))
    assert [row["path"] for row in rows] == list(map(str, paths)) and [row["class"] for row in rows] == names
    assert [row["probability"] for row in rows] == pytest.approx(probability.tolist(), abs=1e-5)
    for row in rows:
        assert len(row["top"]) == 2 and row["top"][0] == {"class": row["class"], "probability": row["probability"]}
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]


def test_every_form_of_the_command_says_the_same(run, folder, capsys):
    image = str(folder / "b.PNG")
    forms = [[str(run), image], [str(run / "model.safetensors"), image], ["runs", image], [image, "--run", str(run)],
             ["--run", str(run), image], [image]]  # fmt: skip
    told = set()
    for form in forms:
        assert cli.main(["predict", *form]) == 0
        told.add(capsys.readouterr().out)
    assert len(told) == 1


def test_no_more_classes_are_named_than_there_are(run, folder, capsys):
    assert cli.main(["predict", str(run), str(folder / "b.PNG"), "--top", "99"]) == 0
    assert capsys.readouterr().out.count("%") == len(NAMES)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "no image is named"),
        (("runs/r",), "no image is named"),
        (("--run", "runs/r"), "no image is named"),
        (("runs/r", "nothing.png"), "nothing.png: cannot be read as an image"),
        (("runs/nope", "pictures"), "runs/nope: is neither a run nor an image"),
        (("runs/r", "pictures", "pictures/notes.txt"), "notes.txt: cannot be read as an image"),
        (("runs/r", "pictures", "cut.png"), "cut.png: cannot be read as an image"),
        (("runs/r", "empty"), "empty: no image in it"),
        (("runs/r", "pictures", "--top", "0"), "--top is 0"),
        (("runs/r", "pictures", "--top", "few"), "few"),
        (("pictures", "--run", "nowhere"), "nowhere: no model.safetensors"),
        (("runs/r", "pictures", "--xml"), "--xml"),
    ],
)
def test_bad_input_is_told_before_anything_is_printed(run, folder, tmp_path, capfd, words, told):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes((folder / "b.PNG").read_bytes()[:200])
    assert_refused(capfd, told, "predict", *words)
