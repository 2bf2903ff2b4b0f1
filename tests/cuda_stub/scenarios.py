"""What runs under the stub: python scenarios.py GROUP RESULTS.json [NAME ...]

Each scenario gives plain numbers, or the error that ended it. Many run in one process, as importing torch takes
seconds.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path


def main(group: str, results: str, *names: str) -> None:
    cases = importlib.import_module(group).CASES
    told = {}
    for name in names or cases:
        begun = time.perf_counter()
        try:
            told[name] = {"value": cases[name]()}
        except Exception as error:
            told[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        told[name]["took_s"] = round(time.perf_counter() - begun, 2)
        Path(results).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
