"""The results of the scenarios, for the tests: each runs once in a session of pytest, many in one process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import stub

TOGETHER = (("basics", "runs"), ("fakes", "failures", "commands"))
"""Groups of scenarios that share a process under the stub."""


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
def results(groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By group and scenario. Of pytest's workers the first that asks runs them, the others wait for what it finds."""
    of_this_session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = stub.build() / "results"
    folder.mkdir(exist_ok=True)
    kept = folder / f"{of_this_session}-{groups[0]}.json"
    with stub.locked(folder / f"{groups[0]}.lock"):
        if not kept.exists():
            remove_old(folder)
            kept.write_text(json.dumps(run(groups)))
    return json.loads(kept.read_text())


def run(groups: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        ended = stub.run_python([str(stub.HERE / "scenarios.py"), folder, *groups])
        assert ended.returncode == 0, f"exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return {group: json.loads(Path(folder, f"{group}.json").read_text()) for group in groups}


def remove_old(folder: Path) -> None:
    """Results of sessions that began an hour ago or more."""
    for path in folder.glob("*.json"):
        if path.stat().st_mtime < time.time() - 3600:
            path.unlink(missing_ok=True)


def ask(group: str, scenario: str) -> Any:
    """What a scenario gave; the error that ended it fails the test."""
    told = _told(group, scenario)
    assert "error" not in told, told["traceback"]
    return told["value"]


def error_of(group: str, scenario: str) -> str:
    """The error that ended a scenario."""
    return _told(group, scenario)["error"]


def _told(group: str, scenario: str) -> dict[str, Any]:
    (together,) = (groups for groups in TOGETHER if group in groups)
    return results(together)[group][scenario]
