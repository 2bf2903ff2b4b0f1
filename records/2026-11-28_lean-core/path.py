"""The files of fastcifar whose functions run from the prompt to the first replay of a step, in their order.

python path.py TREE     # under the stub of CUDA: tests/cuda_stub/stub.py, run_python
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

tree = Path(sys.argv[1]).resolve()
os.chdir(tree)
sys.path[:0] = [str(tree), str(tree / "tests"), str(tree / "tests/cuda_stub")]

import torch  # noqa: E402, F401

try:
    from fastcifar.cli.main import train
except ImportError:  # the tree before
    from fastcifar.cli.train import main as train
from fastcifar.training import step  # noqa: E402

PACKAGE = str(tree / "fastcifar") + os.sep
FLAGS = "--recipe speedrun94 --data synthetic --subset 60 --batch-size 20 --epochs 4 --scale small"
entered, calls = [], 0


class Replayed(BaseException):
    """Ends the run at its first replay."""


def first_replay(*_):
    sys.setprofile(None)
    raise Replayed


def note(frame, event, _):
    global calls
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_flags & 2:  # functions, not class bodies
        calls += 1
        if (name := code.co_filename[len(PACKAGE) :]) not in entered:
            entered.append(name)


(getattr(step, "CapturedStep", None) or step.GraphedStep).__call__ = first_replay
with tempfile.TemporaryDirectory() as folder:
    sys.setprofile(note)
    with contextlib.suppress(Replayed):
        train([*FLAGS.split(), "--out", f"{folder}/run", "--cache-dir", folder])
print(len(entered), "files,", calls, "calls of functions")
print("\n".join(entered))
