"""The results of the scenarios, for the tests: each runs once in a session of pytest, many in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stub

GROUPS = ("basics", "runs", "fused_runs", "fakes", "failures", "command_runs", "memory")
"""Of scenarios: they share a process under the stub, as importing torch takes seconds."""


def reason_to_skip() -> str:
    """Why there is no stub here; a card that is there does no harm, as the stub hides it."""
    if not sys.platform.startswith("linux"):
        return "the CUDA stub needs Linux"
    try:
        stub.build()
    except stub.CannotBuild as cannot:
        return f"no CUDA stub: {cannot}"
    return ""


REASON = reason_to_skip()
marks = [pytest.mark.xdist_group("cuda stub"), pytest.mark.skipif(bool(REASON), reason=REASON)]
"""Of every test here. Best run by one worker of pytest: a second one would wait for the results of the first."""


@cache
def results() -> dict[str, dict[str, Any]]:
    """By group and scenario. Of pytest's workers the first that asks runs them, the others wait for what it finds."""
    of_this_session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = stub.build() / "results"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{of_this_session}.json"
    with stub.locked(folder / "lock"):
        if not kept.exists():
            remove_old(folder)
            kept.write_text(json.dumps(run_scenarios()))
    told = json.loads(kept.read_text())
    assert "failed" not in told, told["failed"]
    return told


def run_scenarios() -> dict[str, Any]:
    """What all scenarios gave, or why there is nothing: kept too, so that not every test tries again."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            ended = stub.run_python([str(stub.HERE / "scenarios.py"), folder, *GROUPS], timeout_s=280)
        except subprocess.TimeoutExpired as late:
            return {"failed": str(late)}
        if ended.returncode:
            return {"failed": f"exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"}
        return {group: json.loads(Path(folder, f"{group}.json").read_text()) for group in GROUPS}


def remove_old(folder: Path) -> None:
    """Results of sessions that began an hour ago or more."""
    for path in folder.glob("*.json"):
        if path.stat().st_mtime < time.time() - 3600:
            path.unlink(missing_ok=True)


def ask(group: str, scenario: str) -> Any:
    """What a scenario gave; the error that ended it fails the test."""
    told = results()[group][scenario]
    assert "error" not in told, told["traceback"]
    return told["value"]


def error_of(group: str, scenario: str) -> str:
    """The error that ended a scenario."""
    return results()[group][scenario]["error"]
