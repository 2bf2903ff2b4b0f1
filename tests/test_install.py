"""`pip install .` and `uv run train_fast.py` work, each in an environment of its own that borrows the big packages."""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "WORLD_SIZE")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def make_environment(folder: Path) -> Path:
    """A virtual environment with pip that finds torch and the rest where these tests run. Returns its bin folder."""
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def copy_of_the_project(folder: Path) -> Path:
    """The files that git knows, without the rest of the working tree."""
    names = ["fastcifar", "*.py", "*.toml", "*.txt", "README.md", "LICENSE"]
    listing = ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard", "--", *names]
    files = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pip_install_then_the_command_in_another_folder(tmp_path):
    project, bin_folder = copy_of_the_project(tmp_path / "project"), make_environment(tmp_path / "env")
    installed = run(bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-deps", project, cwd=tmp_path)
    if installed.returncode and "setuptools" in installed.stderr:
        pytest.skip("pip cannot fetch setuptools")
    assert installed.returncode == 0, installed.stderr[-2000:]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(bin_folder / "fastcifar", "train", "--smoke", "--data", "synthetic", "--device", "cpu", "--out", "r",
               cwd=elsewhere)  # fmt: skip
    assert summary_of(done)["n_train"] == 2000
    assert (elsewhere / "r/model.safetensors").is_file()


def test_uv_runs_the_script(tmp_path):
    project, bin_folder = copy_of_the_project(tmp_path / "project"), make_environment(tmp_path / "env")
    got_uv = run(bin_folder / "python", "-m", "pip", "install", "--quiet", "uv", cwd=tmp_path)
    if got_uv.returncode:
        pytest.skip("uv cannot be installed from PyPI")
    script = ["train_fast.py", "--smoke", "--data", "synthetic", "--device", "cpu", "--out", "r"]
    environment = {"UV_PROJECT_ENVIRONMENT": str(tmp_path / "env")}
    done = run(bin_folder / "uv", "run", "--no-sync", *script, cwd=project, **environment)
    assert summary_of(done)["recipe"] == "swa30"
