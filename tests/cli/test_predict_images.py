"""`fastcifar predict` on images that are large, of 16 bits, no files at all, or have odd names."""

import json
import os
import re

import numpy as np
import pytest
from made_runs import assert_refused, make_run
from PIL import Image

from fastcifar.cli import main as cli
from fastcifar.cli.predict import read_image
from fastcifar.data import checks

pytestmark = pytest.mark.usefixtures("here")

VIEWS = "2 views of each image: itself and its mirror\n"
ODD = ("caf\udce9.png", "new\nline.png", "es\x1b[31mcape.png", "\u202eover.png", "back\\slash.png", 'quo"te.png')
"""Names with a byte that is not UTF-8, a line break, an escape, another writing direction; and two plain ones."""


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs/r", tmp_path / "x.npz")


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


def save(path, pixels=None):
    drawn = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(drawn if pixels is None else pixels).save(file, "PNG")
    return path


def test_the_rule_for_pixels_is_that_of_data_sets(pictures):
    levels = np.arange(0, 65535, 64, np.uint16).reshape(32, 32)
    grey = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(read_image(save(pictures / "16.png", levels)), grey[..., None].repeat(3, 2))
    clear = np.zeros((50, 60, 4), np.uint8)
    assert (read_image(save(pictures / "clear.png", clear)) == 255).all()


def test_a_large_image_is_told_by_its_header(run, pictures, capfd):
    """The pixels are cut off: only decoding would notice, and it would take 400 MB first."""
    whole = save(pictures / "big.png", np.zeros((10_000, 10_000), np.uint8)).read_bytes()
    (pictures / "big.png").write_bytes(whole[:1000])
    told = "big.png: cannot be read as an image (10000x10000 pixels; expected at most 25,000,000)"
    assert_refused(capfd, told, "predict", run, "pictures/big.png")
    assert_refused(capfd, told, "predict", run, "pictures")


def test_a_file_of_many_bytes_is_not_read(run, pictures, capfd, monkeypatch):
    save(pictures / "a.png")
    monkeypatch.setattr(checks, "MAX_PHOTO_BYTES", 1 << 10)
    assert_refused(capfd, "a.png: larger than", "predict", run, "pictures")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_refused(run, pictures, capfd, make):
    """A named pipe would be waited for without an end."""
    make(pictures / "a.png")
    for words in (["pictures"], ["pictures/a.png"]):
        if words == ["pictures/a.png"] and make is os.mkdir:
            continue  # a folder that is named is one of images
        assert_refused(capfd, "a.png: not a file but a folder, pipe or device", "predict", run, *words)


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_the_model(run, pictures, capfd):
    (run / "model.safetensors").unlink()
    os.mkfifo(run / "model.safetensors")
    for command in (["predict", run, save(pictures / "a.png")], ["evaluate", run]):
        assert_refused(capfd, "runs/r: no model.safetensors in it", *command)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_one_line_of_text(run, pictures, capfd, name):
    save(pictures / name)
    for words in (["pictures"], [f"pictures/{name}"]):
        assert cli.main(["predict", str(run), *words]) == 0
        out, err = capfd.readouterr()
        line, end = out[:-1], out[-1]
        assert end == "\n" and line.isprintable() and line.startswith("pictures/")
        assert err == VIEWS
        assert re.fullmatch(r"pictures/\S+\.png: (\w+ [\d.]+%(, )?){3}", line), line


def test_json_of_odd_names_is_valid_and_says_which_file(run, pictures, capfd):
    """Every line is JSON in UTF-8 without a lone surrogate, which strict readers refuse."""
    for name in ODD:
        save(pictures / name)
    assert cli.main(["predict", str(run), "pictures", "--json"]) == 0
    out = capfd.readouterr().out
    assert out.isascii() and "\x1b" not in out and not re.search(r"(?<!\\)\\ud[89a-f]", out)
    paths = {json.loads(line)["path"] for line in out.splitlines()}
    assert paths == {f"pictures/{name}".replace("\udce9", r"\udce9") for name in ODD}


@pytest.mark.parametrize("words", [["{}.png"], ["--run", "{}", "pictures"], ["{}", "pictures/a.png"], ["{}/"]])
def test_messages_with_odd_names_are_one_printable_line(run, pictures, capfd, words):
    save(pictures / "a.png")
    odd = "no\x1b[2J\nsuch\udce9"
    assert cli.main(["predict", *([] if "--run" in words else [str(run)]), *(word.format(odd) for word in words)]) == 2
    out, err = capfd.readouterr()
    assert not out and err.endswith("\n") and err[:-1].isprintable() and r"\x1b[2J" in err, err


def test_odd_files_add_no_line_of_pillow(run, pictures, capfd):
    """Of a palette with opacities, and of a size that Pillow warns about, it would print a warning."""
    image = Image.new("P", (32, 32))
    image.save(pictures / "a.png", transparency=bytes(range(256)))
    assert cli.main(["predict", str(run), "pictures"]) == 0
    assert capfd.readouterr().err == VIEWS
