"""`fastcifar lr-find`: a picture and a suggested peak; wrong flags and losses end in one line."""

import pytest
from made_runs import assert_refused
from PIL import Image

from fastcifar.cli import main as cli
from fastcifar.training.lr_finder import Divergence, suggest

pytestmark = pytest.mark.usefixtures("here")


def test_a_picture_and_a_peak(base, tmp_path, capsys):
    words = ["lr-find", *base, "--optimizer", "sgd", "--lr-first", "1e-3", "--lr-last=1", "--steps", "40"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:5] == ["steps", "of", "20", "images"] and lines[2] == "lr_find.png"
    peak = float(lines[-1].removeprefix("suggested: --lr-peak ").split()[0])
    assert 1e-3 < peak < 1
    with Image.open("lr_find.png") as picture:
        assert picture.format == "PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["lr_find.png"]


def test_help_names_its_own_flags(capsys):
    assert cli.main(["lr-find", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in ("--lr-first", "--lr-last", "--steps", "--out"))
    assert max(map(len, told.splitlines())) < 80


def test_help_tells_the_rule(capsys):
    """The figures of the sentence, where `suggest` and `Divergence` act as it says."""
    assert cli.main(["lr-find", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "half of the rate at which the smoothed loss is smallest" in told
    assert suggest([2.0] * 10 + [6.0], [3.0] * 11, [3.0] * 10 + [1.0]) == 3.0
    assert "or only in the first 10 steps" in told
    assert suggest([2.0] * 11, [3.0] * 11, [3.0] * 9 + [1.0, 2.0]) is None
    divergence = Divergence()
    steady = [divergence.after(1.0 + 0.1 * (i % 2)) for i in range(40)]
    assert "4 times its smallest value or 8 standard errors above it" in told
    assert not any(steady) and divergence.after(60.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lr-first", "1", "--lr-last", "0.1"], "from 1 to 0.1"),
        (["--lr-first", "much"], "--lr-first is 'much'; expected a number"),
        (["--steps", "20.5"], "expected a whole number"),
        (["--steps", "3"], "the test takes from 20"),
        (["--steps"], "--steps: expected a value"),
        (["--out", "."], "is a folder"),
        (["--out", "there/x.png"], "there"),
        (["--resume", "auto"], "--resume"),
        (["--runs", "3"], "--runs has no effect here"),
        (["--dry-run"], "--dry-run has no effect here"),
        (["--nope"], "--nope"),
        (["--epochs", "-1"], "epochs is -1"),
        (["--data", "nothing.npz"], "nothing.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(base, tmp_path, capfd, words, told):
    (tmp_path / "there").write_text("mine")
    assert_refused(capfd, told, "lr-find", *base, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "mine"


def test_a_loss_that_does_not_fall_is_told(base, capfd):
    words = ["--optimizer", "sgd", "--lr-first", "1e5", "--lr-last", "1e9", "--steps", "30"]
    assert_refused(capfd, "the loss does not fall", "lr-find", *base, *words)
