"""`pip install .` and `uv run train_fast.py` work, each in an environment of its own that borrows the big packages."""

import importlib.util
import json
import os
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from processes import TINY

pytestmark = pytest.mark.xdist_group("install")  # one process makes the environment

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["--smoke", "--data", "synthetic", "--device", "cpu", "--precision", "fp32", "--shape", str(TINY)]


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "WORLD_SIZE")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def make_environment(folder: Path) -> Path:
    """A virtual environment that finds torch, pip and the rest where these tests run. Returns its bin folder."""
    venv.create(folder, with_pip=importlib.util.find_spec("pip") is None)
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an environment in which `pip install .` was called; DALI is not to be found there."""
    folder = tmp_path_factory.mktemp("installed")
    project, bin_folder = copy_of_the_project(folder / "project"), make_environment(folder / "env")
    done = run(bin_folder / "python", "-m", "pip", "install", "--quiet", "--no-deps", project, cwd=folder)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("pip cannot fetch setuptools")
    assert done.returncode == 0, done.stderr[-2000:]
    (packages,) = folder.glob("env/lib/python*/site-packages")
    (packages / "without_dali.pth").write_text("import sys; sys.modules['nvidia.dali'] = None\n")
    return bin_folder


def test_pip_install_then_the_command_in_another_folder(installed, tmp_path):
    done = run(installed / "fastcifar", "train", *SMOKE, "--out", "r", cwd=tmp_path)
    summary = summary_of(done)
    assert summary["n_train"] == 2000 and summary["augment"] == "torch"
    assert (tmp_path / "r/model.safetensors").is_file()


def test_type_checkers_find_the_types_of_the_installed_package(installed, tmp_path):
    code = "import fastcifar, os; print(*os.listdir(os.path.dirname(fastcifar.__file__)))"
    names = run(installed / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert "py.typed" in names and "api.py" in names


def test_without_dali_only_its_flag_is_refused(installed, tmp_path):
    done = run(installed / "fastcifar", "train", *SMOKE, "--augment", "dali", cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "DALI does not run here" in line and "pip install nvidia-dali-cuda130" in line


def test_the_package_needs_no_dali_and_has_it_as_an_extra(installed, tmp_path):
    code = "import importlib.metadata as m; print(*m.requires('fastcifar'), sep='\\n')"
    needs = run(installed / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    always = {need.replace(" ", "") for need in needs if "extra ==" not in need}
    base = (ROOT / "requirements-base.txt").read_text().splitlines()
    assert always == {line for line in base if not line.startswith("#")} and not any("dali" in n for n in always)
    (dali,) = (need for need in needs if "dali" in need)
    assert dali.startswith("nvidia-dali-cuda130>=2.4") and "extra == 'dali'" in dali.replace('"', "'")


def test_the_default_installation_is_the_package_with_dali():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dali"]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-r requirements-base.txt", *extra]


def test_uv_runs_the_script(installed, tmp_path):
    """In the environment that has the package already, from another copy of the project."""
    project = copy_of_the_project(tmp_path / "project")
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--ignore-installed",
        "uv",
    ]  # one that was borrowed has no program here
    got_uv = run(installed / "python", *install, cwd=tmp_path)
    if got_uv.returncode:
        pytest.skip("uv cannot be installed from PyPI")
    environment = {"UV_PROJECT_ENVIRONMENT": str(installed.parent)}
    done = run(installed / "uv", "run", "--no-sync", "train_fast.py", *SMOKE, "--out", "r", cwd=project, **environment)
    assert summary_of(done)["recipe"] == "swa30"
