"""The house: imports run downward by rooms, one file reads a clock, one knows DALI, files and functions are short."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "fastcifar").rglob("*.py"))
PROGRAMS = [*PACKAGE, *sorted((ROOT / "bench").glob("*.py")), ROOT / "train_fast.py"]
ALL = [*PROGRAMS, *sorted((ROOT / "tests").rglob("*.py"))]
ROOMS = (
    "bench", "train_fast", "cli", "api", "inference", "observers", "training", "runs", "augment", "optim", "models",
    "data", "config", "files",
)  # fmt: skip
"""From the top down. A room imports itself and rooms below it. `api` and `files` are single files."""
PUBLIC_NAMES = ("fastcifar/__init__.py", "fastcifar/__main__.py")
"""The public names and the entry, which import from everywhere."""
MAX_LINES, MAX_FUNCTION_LINES = 300, 60
MAX_CORE_FILES, MAX_CORE_LINES = 22, 3_000


def room_of(path: Path) -> str:
    inside = path.relative_to(ROOT)
    if inside.parts[0] == "fastcifar":
        return inside.parts[1].removesuffix(".py")
    return inside.parts[0].removesuffix(".py")


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return [*ast.walk(ast.parse(path.read_text()))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, anywhere in it."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_used(path: Path) -> set[str]:
    """Rooms of this project that a file imports from."""
    used = set()
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "fastcifar":
            room = rest.partition(".")[0]
            used.add(room if room in ROOMS else "files" if room == "__version__" else "api")  # a public name
        elif top in ("bench", "train_fast"):
            used.add(top)
    return used


def rooms_below(room: str) -> set[str]:
    return set(ROOMS[ROOMS.index(room) :])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_run_downward():
    wrong = {
        name_of(path): above
        for path in PROGRAMS
        if name_of(path) not in PUBLIC_NAMES and (above := rooms_used(path) - rooms_below(room_of(path)))
    }
    assert not wrong, "a file imports from a room above its own"


def test_imports_are_seen_in_every_form(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import fastcifar.data.dataset\nfrom fastcifar.training import loop\nfrom fastcifar import __version__\n"
        "def f():\n    from fastcifar.optim.averaging import RunningMean\n    import bench.harness\n"
    )
    assert rooms_used(file) == {"data", "training", "files", "optim", "bench"}
    assert "models" not in rooms_below("data") and "data" in rooms_below("models")


def test_the_tests_have_the_folders_of_the_package():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert set(ROOMS) - {"train_fast", "api", "files"} <= folders


def reads_clock(path: Path) -> bool:
    calls = ("now", "today", "utcnow", "perf_counter", "monotonic", "elapsed_time", "process_time")
    called = any(isinstance(n, ast.Attribute) and n.attr in calls for n in nodes_of(path))
    return called or any(name.partition(".")[0] in ("time", "timeit") for name in imports(path))


def test_only_the_stopwatch_reads_a_clock():
    """The date in a record is the one other thing that comes from a clock."""
    assert {path.name for path in PROGRAMS if reads_clock(path)} == {"stopwatch.py", "environment.py"}


def test_only_one_file_imports_dali_and_only_the_kernels_import_triton():
    for path in PACKAGE:
        tops = {name.partition(".")[0] for name in imports(path)}
        assert ("nvidia" in tops) == (path.name == "dali.py"), path
        assert ("triton" in tops) == path.name.endswith("kernels.py"), path


def test_files_and_functions_are_short():
    long = []
    for path in ALL:
        assert path.stem not in ("utils", "util", "helpers", "common"), path
        functions = (n for n in nodes_of(path) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
        long += [(name_of(path), f.name) for f in functions if (f.end_lineno or 0) - f.lineno >= MAX_FUNCTION_LINES]
        long += [(name_of(path), "the file")] if len(path.read_text().splitlines()) > MAX_LINES else []
    assert not long


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
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PROGRAMS]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    if importlib.util.find_spec("triton") is None:  # which torch's CPU builds come without
        names.remove("fastcifar.models.kernels")
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, **places, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_basenames_are_unique_over_the_tests():
    """pytest imports test files by their basename."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_the_core_of_a_run_is_small_and_all_of_it_is_there():
    """The first table of docs/architecture.md, whose files a reader can read in one go."""
    table = (ROOT / "docs/architecture.md").read_text().partition("| file |")[2].partition("\n\n")[0]
    files = [name for row in table.splitlines() for name in re.findall(r"`(\w+/\w+\.py)`", row.split("|")[1])]
    lines = sum(len((ROOT / "fastcifar" / name).read_text().splitlines()) for name in files)
    assert 15 < len(set(files)) == len(files) <= MAX_CORE_FILES and lines <= MAX_CORE_LINES
