"""What runs under the stub: python scenarios.py FOLDER GROUP ...

A group is a module with CASES: functions that give plain numbers. FOLDER/GROUP.json gets what each gave, or the error
that ended it. Many run in one process, as importing torch takes seconds. CUDA_STUB_CASES, a regular expression, leaves
out all others, for whoever runs few of the tests.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(folder: str, *groups: str) -> None:
    wanted = re.compile(os.environ.get("CUDA_STUB_CASES", ""))
    for group in groups:
        cases: dict[str, Callable[[], Any]] = importlib.import_module(group).CASES
        told = {name: run(case) for name, case in cases.items() if wanted.search(f"{group}: {name}")}
        Path(folder, f"{group}.json").write_text(json.dumps(told))


def run(case: Callable[[], Any]) -> dict[str, Any]:
    begun = time.process_time()
    try:
        told = {"value": case()}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**told, "took_s": round(time.process_time() - begun, 2)}


if __name__ == "__main__":
    main(*sys.argv[1:])
