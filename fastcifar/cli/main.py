"""The `fastcifar` command: dispatches to one file a command.

A command is imported when it is called: torch takes seconds, and until then a signal already ends with one line.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fastcifar.cli.signals import Signals, Stopped

COMMANDS = ("train", "evaluate", "ensemble", "compare", "export", "schedule", "lr-find", "predict", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code.

    Wrong use, bad input or no memory: 2 and one line on stderr. SIGINT or SIGTERM: 130 or 143 and one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        wants_help = arguments[:1] in (["-h"], ["--help"])
        print(f"usage: fastcifar {{{','.join(COMMANDS)}}} [--help]", file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    signals = Signals()
    try:
        return run(arguments[0], arguments[1:], signals)
    except Stopped as e:
        print(e, file=sys.stderr, flush=True)
        return 128 + e.number
    except Exception as e:
        from fastcifar.cli.errors import message_and_code
        from fastcifar.data.messages import printable

        message, code = message_and_code(e, training=False)
        if not message:
            raise
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
        return code
    finally:
        signals.restore()


def run(name: str, argv: Sequence[str], signals: Signals) -> int:
    """The exit code of one command."""
    command = importlib.import_module(f"fastcifar.cli.{name.replace('-', '_')}")
    if name == "train":
        return int(command.main(argv, signals, prog="fastcifar train"))
    signals.phase = "command"
    return int(command.main(argv))


if __name__ == "__main__":
    sys.exit(main())
