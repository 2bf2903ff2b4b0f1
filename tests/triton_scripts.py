"""Runs a script of these tests in a process of its own: under Triton's interpreter, or building for another card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_script(name: str, *arguments: str, **environment: str) -> Any:
    """The last line that a script in the tests' folder prints, as JSON.

    What Triton has built is kept for the next session: its key is the kernel's source, its types and its options.
    """
    kept = Path(tempfile.gettempdir()) / f"fastcifar-triton-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    assert kept.stat().st_uid == os.getuid(), f"{kept} is another user's: what lies there would be executed"
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1",
              "TRITON_CACHE_DIR": str(kept), **environment}  # fmt: skip
    command = [sys.executable, str(ROOT / "tests" / name), *arguments]
    done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
