"""Every command that the pages show is run at smoke size, or read as shown where it needs a card or minutes."""

import importlib
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import tyro
from conftest import CLASSES, make_dataset
from PIL import Image
from processes import no_curves, write_images

from fastcifar.cli import ensemble, flags, lr_find
from fastcifar.cli import main as cli
from fastcifar.runs import plots

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "bench/README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
NOT_RUN = {
    "python3 -m venv .venv": "tests/test_install.py makes an environment",
    ".venv/bin/pip install -r requirements.txt": "downloads gigabytes",
    ".venv/bin/python -m pytest tests/optim -q": "it is this suite",
    "python train_fast.py --epochs 3 --log wandb": "shown with its error; tests/observers/test_trackers.py",
    "pip install nvidia-dali-cuda120": "for another driver",
    "git clone https://github.com/NVIDIA/apex && cd apex": "needs the network",
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation .": "needs a CUDA toolkit",
}
"""Commands that no test here runs, and why."""
SMALL = "--data synthetic --subset 100 --batch-size 50 --scale small --device cpu --precision fp32 --cache-dir cache"

FEWER = {("--extend-epochs", "40"): "3", ("--runs", "10"): "2", ("--swag-rank", "20"): "2", ("--swag-rank", "10"): "2"}
"""Smaller values of flags."""
ALIKE = {"runs/A": "runs/NAME", "runs/s0": "runs/NAME", "runs/s1": "runs/B"}
"""Folders of equal runs, so that a command that two pages show is run once."""


def blocks(page: str) -> list[str]:
    """The indented blocks of a page, without their indent; fenced code is left out."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def commands(page: str) -> list[str]:
    """The commands of a page in order, each on one line. In a block with `$` the other lines are output."""
    lines = []
    for block in blocks(page):
        if not block.startswith(("import ", "#!")):
            shown = block.replace("\\\n", " ").splitlines()
            lines += [line[2:] for line in shown if line.startswith("$ ")] if block.startswith("$ ") else shown
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def words_of(line: str) -> list[str]:
    """Program first, by one name; runs that are alike, too. Environments and options in [ ] are left out."""
    words = [ALIKE.get(w, w) for w in shlex.split(line) if not w.startswith("[")]
    if words[0] == "fastcifar":
        return ["python", "-m", *words]
    return ["python", *words[1:]] if words[0].endswith("bin/python") else words


def run(words: list[str]) -> None:
    """Runs a command of this package in this process, made small. Any other program is an error here."""
    if words[:3] == ["python", "-m", "fastcifar"] and words[3] != "train":
        small = [*SMALL.split(), "--steps", str(lr_find.LEAST_STEPS)] if words[3] == "lr-find" else []
        assert cli.main([*words[3:], *small]) == 0, words
        return
    assert words[1] == "train_fast.py" or words[1:4] == ["-m", "fastcifar", "train"], f"add {words} here or to NOT_RUN"
    shown = words[4:] if words[1] == "-m" else words[2:]
    resumed = "--resume" in shown
    if not resumed:
        flags.parse(shown)  # as it stands
    shown = [FEWER.get((shown[i - 1], word), word) for i, word in enumerate(shown)]
    small = SMALL.split() if not resumed else []
    if "photos.tar.xz" in shown:
        small = small[4:]
    epochs = "2" if "--stop-at" in shown else "1"
    assert cli.train([*shown, *small, *([] if resumed or "--smoke" in shown else ["--epochs", epochs])]) == 0, words


def check(words: list[str]) -> None:
    """Reads a command as shown: the flags of a bench or of a training, the targets of make."""
    if words[0] == "torchrun":
        flags.parse(words[words.index("train_fast.py") + 1 :])
    elif words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        bench = importlib.import_module(words[2])
        tyro.cli(bench.Options, args=words[3:])


@pytest.fixture
def quick(here, monkeypatch):
    """Two samples of a Gaussian over weights, and figures that are made but not rendered: that takes a second each."""
    monkeypatch.setattr(ensemble, "SAMPLES", 2)
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: no_curves(path))


@pytest.fixture
def made(quick):
    """What the pages take for granted: runs, pictures and photos."""
    data = make_dataset(100, 40)
    for seed, names in enumerate((("NAME", "A", "s0", "stopped"), ("B", "s1"))):
        first = f"runs/{names[0]}"
        assert cli.train([*SMALL.split(), "--seed", str(seed), "--epochs", "2", "--out", first]) == 0
        for name in names[1:]:
            shutil.copytree(first, f"runs/{name}")
    Path("runs/stopped/summary.json").unlink()
    Path("pictures").mkdir()
    for path in ("cat.png", "pictures/disc.png"):
        Image.fromarray(data.x_test[0]).save(path)
    for split, images, labels in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path("photos", split, CLASSES[label], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    with tarfile.open("photos.tar.xz", "w:xz", preset=0) as tar:
        tar.add("photos", ".")


def test_the_commands_run(made, capfd):
    lines = [line for page in PAGES for line in commands(page)]
    assert set(NOT_RUN) <= set(lines)
    shown = dict.fromkeys(tuple(words_of(line)) for line in lines if line not in NOT_RUN)
    only_read = [w for w in shown if w[0] in ("torchrun", "make") or "".join(w[2:3]).startswith("bench.")]
    for words in shown:
        (check if words in only_read else run)(list(words))
        assert "error: " not in capfd.readouterr().err, words
    assert len(shown) - len(only_read) >= 30


def test_the_python_of_the_readme_runs(here):
    write_images(Path("photos.npz"))
    code = [block for block in blocks("README.md") if block.startswith("import ")]
    assert len(code) == 1
    names = {"images": make_dataset().x_test[:3]}
    exec(code[0], names)
    assert len(names["names"]) == 3


def test_the_scripts_are_scripts():
    scripts = [block for page in PAGES for block in blocks(page) if block.startswith("#!")]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        line = next(line for line in script.replace("\\\n", " ").splitlines() if "torchrun" in line)
        check(words_of(line)[1:])
    assert scripts


def fenced(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_loop_on_the_page_is_the_loop():
    """The page leaves out lines; what it shows is the code, in order."""
    (shown,) = fenced("docs/architecture.md")
    code = iter([line.strip() for line in (ROOT / "fastcifar/training/loop.py").read_text().splitlines()])
    for line in shown.splitlines():
        assert line.strip() in code, line
