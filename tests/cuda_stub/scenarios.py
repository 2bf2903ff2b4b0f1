"""What runs under the stub: python scenarios.py FOLDER GROUP ...

A group is a module with CASES: functions that give plain numbers. FOLDER/GROUP.json gets what each gave, or the error
that ended it. Many run in one process, as importing torch takes seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(folder: str, *groups: str) -> None:
    for group in groups:
        told = {name: run(case) for name, case in importlib.import_module(group).CASES.items()}
        Path(folder, f"{group}.json").write_text(json.dumps(told))


def run(case: Callable[[], Any]) -> dict[str, Any]:
    begun = time.perf_counter()
    try:
        told = {"value": case()}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**told, "took_s": round(time.perf_counter() - begun, 2)}


if __name__ == "__main__":
    main(*sys.argv[1:])
