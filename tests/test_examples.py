"""Every example runs, at smoke size."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_data_selection(tmp_path):
    flags = ["--data", "synthetic", "--subset", "500", "--epochs", "1", "--runs", "1"]
    command = [sys.executable, str(ROOT / "examples/data_selection.py"), *flags]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["hardest", "random"]


def test_every_example_is_tested():
    assert {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py"} == {"data_selection.py"}
