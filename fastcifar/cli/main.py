"""The `fastcifar` command: dispatches to one file a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastcifar.cli import compare, doctor, ensemble, evaluate, export, lr_find, predict, schedule, train
from fastcifar.data.errors import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code. Wrong use or bad input: 2 and one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": train_command,
        "evaluate": evaluate.main,
        "ensemble": ensemble.main,
        "compare": compare.main,
        "export": export.main,
        "schedule": schedule.main,
        "lr-find": lr_find.main,
        "predict": predict.main,
        "doctor": doctor.main,
    }
    if not arguments or arguments[0] not in commands:
        wants_help = arguments[:1] in (["-h"], ["--help"])
        print(f"usage: fastcifar {{{','.join(commands)}}} [--help]", file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except (ValueError, OSError) as e:
        print(f"error: {printable(' '.join(str(e).split()))}", file=sys.stderr)
        return 2


def train_command(argv: Sequence[str]) -> int:
    """`fastcifar train [flags]`: as train_fast.py."""
    return train.main(argv, prog="fastcifar train")


if __name__ == "__main__":
    sys.exit(main())
