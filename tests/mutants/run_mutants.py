"""`make mutants`: puts each fault of the list into a copy of the tree, runs the tests that must see it, says which do.

    python tests/mutants/run_mutants.py [NAME ...] [--jobs N] [--out FILE] [--table FILE] [--limit-s S]

NAME: of faults or rooms, with * and ?; by default all. Your own tree is only read. First the tests run without a fault:
they must pass. Each outcome is a line of JSON in FILE, and what is there already is not run again unless the fault, its
file or its tests have changed. Exit code 1 when a fault is not caught.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from queue import Queue
from typing import Any

from faults import LIST, ROOT, Fault, read_faults

PRELOADED = ["torch", "numpy", "pytest", "hypothesis", "matplotlib.pyplot", "torchvision", "tyro", "safetensors.torch"]
"""Imported once, before each run is forked off: they take most of the seconds that a run needs."""
CAUGHT, SURVIVED, SKIPPED, LATE, BROKEN = "caught", "SURVIVED", "skipped", "LATE", "BROKEN"
"""LATE: not ended within the limit. BROKEN: no test ran, so the fault shows nothing."""


def main(argv: Sequence[str] | None = None, root: Path = ROOT, folder: Path = LIST) -> int:
    """Runs the chosen faults and prints the table. SystemExit with one line for a list that does not fit the tree."""
    parser = argparse.ArgumentParser(description="Puts faults into a copy of the tree; the tests must see each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults or rooms, with * and ?")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once, each in a copy of its own")
    parser.add_argument("--out", type=Path, default=root / "build/mutants.jsonl", help="a line per outcome")
    parser.add_argument("--table", type=Path, help="writes the table there, too")
    parser.add_argument("--limit-s", type=float, default=300, help="seconds for one fault")
    options = parser.parse_args(argv)
    faults = chosen(read_faults(folder), options.names)
    try:
        for fault in faults:
            fault.spoiled((root / fault.file).read_text())
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    known = read_outcomes(options.out)
    left = [fault for fault in faults if known.get(fault.name, {}).get("digest") != fault.digest(root)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack, options.out.open("a") as out:
        copies = [stack.enter_context(copy_of(root)) for _ in range(max(1, min(options.jobs, len(left))))]
        if left:
            check_without_fault(left, copies[0], options.limit_s * 5)
        for outcome in run_all(left, copies, options.limit_s):
            known[outcome["name"]] = outcome
            print(json.dumps(outcome), file=out, flush=True)
            print(f"{outcome['outcome']:9} {outcome['name']} ({outcome['seconds']:.0f} s)", flush=True)
    return report(faults, known, options.table)


def chosen(faults: list[Fault], patterns: Sequence[str]) -> list[Fault]:
    """Those whose name or room fits one of the patterns; all without any. SystemExit for a pattern that fits none."""
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for fault in faults for name in (fault.name, fault.room)):
            raise SystemExit(f"error: no fault and no room is called {pattern}; see tests/mutants/faults")
    return [f for f in faults if not patterns or any(fnmatch(f.name, p) or fnmatch(f.room, p) for p in patterns)]


def read_outcomes(path: Path) -> dict[str, dict[str, Any]]:
    """Outcomes by the name of the fault, the last of each; a line that was cut off is left out."""
    outcomes = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            outcome = json.loads(line)
            outcomes[outcome["name"]] = outcome
    return outcomes


@contextlib.contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A temporary copy of the tree: of the files that git has or does not ignore, without the records of runs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fastcifar-mutants-") as folder:
        for name in filter(None, listed.split("\0")):
            if (root / name).is_file() and not name.startswith("records/"):
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, Path(folder) / name)
        yield Path(folder)


def check_without_fault(faults: list[Fault], copy: Path, limit_s: float) -> None:
    """SystemExit unless the tests of all these faults pass without any."""
    tests = tuple(dict.fromkeys(test for fault in faults for test in fault.tests))
    scenarios = [fault.stub for fault in faults if any("cuda_stub" in test for test in fault.tests)]
    code, said = run_tests(copy, tests, "|".join(scenarios) if all(scenarios) else "", limit_s)
    if code != 0:
        raise SystemExit(f"error: without a fault the tests do not pass; mend that first:\n{said[-3000:]}")


def run_all(faults: list[Fault], copies: list[Path], limit_s: float) -> Iterator[dict[str, Any]]:
    """Outcomes in the order of the list."""
    free: Queue[Path] = Queue()
    for copy in copies:
        free.put(copy)

    def in_a_copy(fault: Fault) -> dict[str, Any]:
        copy = free.get()
        try:
            return run_fault(fault, copy, limit_s)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            yield from pool.map(in_a_copy, faults)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C: what runs may end, nothing more begins


def run_fault(fault: Fault, copy: Path, limit_s: float) -> dict[str, Any]:
    """The outcome of one fault in a copy of the tree, which is then as it was."""
    path, began, digest = copy / fault.file, time.monotonic(), fault.digest(copy)
    whole = path.read_text()
    write(path, fault.spoiled(whole))
    try:
        code, said = run_tests(copy, fault.tests, fault.stub, limit_s)
    finally:
        write(path, whole)
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    outcome = {None: LATE, 0: SURVIVED, 1: CAUGHT if failed else BROKEN}.get(code, BROKEN)
    if code == 0 and not re.search(r"\d passed", said):
        outcome = SKIPPED
    return {
        "name": fault.name, "outcome": outcome, "by": failed[0] if failed else "", "digest": digest,
        "seconds": round(time.monotonic() - began, 1), "said": "" if outcome == CAUGHT else said[-2000:],
    }  # fmt: skip


def write(path: Path, text: str) -> None:
    """Each write is a second later: by size and second Python tells whether a file is still what it compiled."""
    before = path.stat().st_mtime
    path.write_text(text)
    os.utime(path, (before + 1, before + 1))


def run_tests(copy: Path, tests: Sequence[str], scenarios: str, limit_s: float) -> tuple[int | None, str]:
    """(exit code, output) of pytest in a copy of the tree; the code is None if it did not end in time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as output:
        process = context.Process(target=_pytest, args=(copy, list(tests), scenarios, output.name))
        process.start()
        process.join(limit_s)
        code = process.exitcode
        if code is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        return code, output.read()


def _pytest(copy: Path, tests: list[str], scenarios: str, output: str) -> None:
    """In a process of its own: runs pytest in the copy, and ends with its exit code."""
    os.setsid()
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
    os.chdir(copy)
    os.environ |= {"CUDA_STUB_CASES": scenarios, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    os.environ["PYTEST_XDIST_TESTRUNUID"] = Path(
        output
    ).stem  # by which the stub's results are kept: none of another fault
    vars(sys.modules["__main__"]).pop("__file__", None)  # processes that the tests start must not import this file
    sys.path[:] = [str(copy), *(place for place in sys.path if place != str(Path(__file__).parent))]
    import pytest

    code = pytest.main([*tests, "-x", "--no-header", "--tb=short", "--timeout", "120", "-p", "no:cacheprovider"])
    sys.stdout.flush()
    os._exit(int(code))


def report(faults: list[Fault], outcomes: dict[str, dict[str, Any]], table: Path | None) -> int:
    """Prints a row per fault, those that were not caught last, and gives the exit code."""
    rows = [(fault, outcomes[fault.name]) for fault in faults]
    rows.sort(key=lambda row: row[1]["outcome"] not in (CAUGHT, SKIPPED))
    width = max(len(fault.name) for fault in faults)
    lines = [f"{f.name:{width}}  {o['outcome']:8}  {f.what}" + (f"  [{o['by']}]" if o["by"] else "") for f, o in rows]
    count = {kind: sum(o["outcome"] == kind for _, o in rows) for kind in (CAUGHT, SURVIVED, LATE, BROKEN, SKIPPED)}
    lines += ["", f"{len(rows)} faults: " + ", ".join(f"{n} {kind}" for kind, n in count.items() if n)]
    print("\n".join(["", *lines]))
    if table:
        table.write_text("\n".join(lines) + "\n")
    return int(count[CAUGHT] + count[SKIPPED] < len(rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the preloaded torch reads it
    sys.exit(main())
