"""Imports run downward only, one file reads the clock, one file knows DALI, and importing does no work."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "fastcifar").glob("*.py"))
BENCHES = sorted((ROOT / "bench").glob("*.py"))
FILES = [*PACKAGE, *BENCHES, ROOT / "train_fast.py"]

LEVELS = (
    "config files interrupt timing",
    "augment checkpoint dali data distributed download evaluate formats machine model optim plots progress recipes "
    "record schedules sources swa synthetic",
    "flags folder job memory state step train",
    "__main__ bench cli entry train_fast",
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules.split()}
WITHIN_A_LEVEL = {
    ("dali", "augment"),
    ("data", "download"),
    ("data", "sources"),
    ("data", "synthetic"),
    ("plots", "schedules"),
    ("sources", "formats"),
    ("memory", "job"),
    ("memory", "step"),
    ("job", "state"),
    ("step", "job"),
    ("step", "state"),
    ("train", "job"),
    ("train", "state"),
    ("train", "step"),
    ("__main__", "cli"),
    ("bench", "bench"),
    ("bench", "entry"),
    ("cli", "entry"),
    ("train_fast", "entry"),
}
KNOWS_ONLY = {"recipes": {"config"}, "config": set(), "files": set(), "interrupt": set(), "timing": set()}


def module_of(path: Path) -> str:
    return "bench" if path.parent.name == "bench" else path.stem


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(path: Path) -> set[str]:
    """Modules of this project that a file imports."""
    known = {p.stem for p in PACKAGE}
    found = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "fastcifar" and rest.partition(".")[0] in known:
            found.add(rest.partition(".")[0])
        elif top in ("bench", "train_fast"):
            found.add(top)
    return found


def is_allowed(module: str, imported: str) -> bool:
    if module in KNOWS_ONLY:
        return imported in KNOWS_ONLY[module]
    return LEVEL[imported] < LEVEL[module] or (module, imported) in WITHIN_A_LEVEL


def test_every_module_has_a_level():
    assert {module_of(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_imports_run_downward(path):
    module = module_of(path)
    wrong = arrows(path) if module == "__init__" else {i for i in arrows(path) if not is_allowed(module, i)}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_arrows_are_seen_in_every_form_of_import(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("import fastcifar.data\nfrom fastcifar import train, __version__\n"
                    "def f():\n    from fastcifar.swa import RunningMean\n    import bench.harness\n")  # fmt: skip
    assert arrows(file) == {"data", "train", "swa", "bench"}
    assert not is_allowed("schedules", "train") and not is_allowed("recipes", "files")
    assert not is_allowed("swa", "model") and is_allowed("train", "swa")


def reads_clock(path: Path) -> bool:
    text = path.read_text()
    calls = ("now", "today", "utcnow", "perf_counter", "monotonic", "elapsed_time", "process_time")
    called = any(isinstance(n, ast.Attribute) and n.attr in calls for n in ast.walk(ast.parse(text)))
    return called or any(name.partition(".")[0] in ("time", "timeit") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_only_timing_reads_a_clock(path):
    assert reads_clock(path) == (path.name == "timing.py")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.stem)
def test_only_dali_imports_dali(path):
    assert any(name.startswith("nvidia") for name in imports(path)) == (path.name == "dali.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_file_is_over_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in ("utils", "util", "helpers", "common")


def test_importing_does_no_work(tmp_path):
    """No word, no file, no thread, no draw from a global generator."""
    code = """
import random, sys, threading
import numpy, torch
before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
for name in sys.argv[1:]:
    __import__(name)
after = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
assert threading.active_count() == 1, threading.enumerate()
assert not torch.cuda.is_initialized()
assert "nvidia.dali" not in sys.modules and "matplotlib" not in sys.modules
"""
    names = [f"fastcifar.{p.stem}" for p in PACKAGE if p.stem != "__main__"]
    names += [f"bench.{p.stem}" for p in BENCHES]
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, **places, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
