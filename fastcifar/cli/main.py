"""The `fastcifar` command: one file a command. An error is one line that says what is wrong, where and what to do.

A command is imported when it is called: torch takes seconds, and until then a signal already ends with one line.
"""

import difflib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

from fastcifar.cli.signals import Signals, Stopped

COMMANDS = {
    "train": "train a network and keep it in a run folder (= train_fast.py)",
    "evaluate": "measure a run's model: metrics by class, confusion, mistakes",
    "ensemble": "measure several models together, with --swag samples of each",
    "compare": "draw the curves of several runs and list their settings",
    "export": "write a model as ONNX, by torch.export or for the hub",
    "schedule": "draw learning rate and momentum of recipes, without a training",
    "lr-find": "find a peak for the learning rate by a range test",
    "predict": "name the classes of images by the model of a run",
    "doctor": "say what is here, what is missing and how to mend it",
}
"""The commands, with what `fastcifar --help` says of each."""
DESCRIPTION = "Trains a CIFAR-10 network fast, and keeps what was trained. --version prints the version."
DONE, FAILED, BAD_INPUT, DIVERGED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `fastcifar COMMAND ...`; 2 for a command that does not exist."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = arguments[0] if arguments else ""
    if word == "--version":
        return _print_version()
    if word in ("-h", "--help"):
        return _say(_usage())
    if not word:
        print(_usage(), file=sys.stderr)
        return BAD_INPUT
    if word not in COMMANDS:
        from fastcifar.data.messages import printable

        close = difflib.get_close_matches(word, [*COMMANDS, "--help", "--version"], n=1)
        advice = f"did you mean {close[0]}?" if close else "see fastcifar --help"
        print(f"error: fastcifar {printable(word)}: no such command; {advice}", file=sys.stderr)
        return BAD_INPUT
    return run(arguments[0], arguments[1:], f"fastcifar {arguments[0]}")


def train(argv: Sequence[str], signals: Signals | None = None) -> int:
    """The exit code of `train_fast.py ...`."""
    return run("train", argv, "train_fast.py", signals)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: fastcifar COMMAND ... | --help | --version", "", *lines, "",
                      "fastcifar COMMAND --help lists the flags of a command."])  # fmt: skip


def _print_version() -> int:
    from fastcifar import __version__

    return _say(f"fastcifar {__version__}")


def _say(text: str) -> int:
    """Prints a text. A reader that has seen enough, as `head` does, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
    return DONE


def run(name: str, argv: Sequence[str], prog: str, signals: Signals | None = None) -> int:
    """Runs a command and returns the exit code. An error is one line on stderr, below a traceback with --debug.

    Wrong use, bad input or no memory: 2. SIGINT or SIGTERM: 130 or 143.

    signals: handlers that are set already; without them this function sets its own and restores the earlier ones.
    """
    handlers = signals or Signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of classes and files that a terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        return _command(name, argv, prog, handlers)
    except Stopped as e:
        print(e, file=sys.stderr, flush=True)
        return 128 + e.number
    except Exception as e:
        from fastcifar.data.messages import printable

        message, code = message_and_code(e, training=name == "train")
        if not message or (name == "train" and "--debug" in argv):
            traceback.print_exc()
        print(f"error: {printable(' '.join(message.split())) or repr(e)}", file=sys.stderr, flush=True)
        return code
    finally:
        if signals is None:
            handlers.restore()


def _command(name: str, argv: Sequence[str], prog: str, signals: Signals) -> int:
    if "--version" in argv:
        return _print_version()
    if name == "train":
        from fastcifar.cli import flags

        config, command = flags.parse(argv, prog, DESCRIPTION)  # --help and a wrong flag do not wait for torch
        from fastcifar.cli import train

        return train.main(config, command, signals)
    module = importlib.import_module(f"fastcifar.cli.{name.replace('-', '_')}")
    signals.phase = "command"
    return int(module.main(argv))


def message_and_code(error: Exception, training: bool = True) -> tuple[str, int]:
    """The line for an error, and the exit code. The line is empty for a bug in fastcifar.

    training: False for a command that trains no run, so that none can be continued.
    """
    to_resume = " (continue {} with --resume)" if training else ""
    if isinstance(error, BrokenPipeError):
        return (
            f"the program that read this output has ended; write it to a file{to_resume.format('the run')}",
            BAD_INPUT,
        )
    if isinstance(error, OSError):
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        what = f"{where}: {error.strerror}" if where else str(error)
        remedy = "make room or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose"
        return f"{what}; {remedy} another {'folder' if training else 'place'}{to_resume.format('a run')}", BAD_INPUT
    if isinstance(error, ValueError):  # usage, data, checkpoint, settings that do not fit together
        return str(error), BAD_INPUT
    from fastcifar.augment.dali import DaliUnavailable
    from fastcifar.runs.checkpoint import ran_out_of_memory
    from fastcifar.training import processes
    from fastcifar.training.state import Diverged

    if isinstance(error, Diverged):
        return f"training diverged: {error}", DIVERGED
    if isinstance(error, DaliUnavailable):
        return str(error), BAD_INPUT
    if ran_out_of_memory(error):
        when, less = (" before training began", "a smaller --subset") if training else ("", "fewer images")
        return f"out of memory{when}; close other programs or use {less}", BAD_INPUT
    if processes.lost_a_process(error):
        return "another process of this run has ended (its own message says why); continue with --resume", BAD_INPUT
    return "", FAILED


if __name__ == "__main__":
    sys.exit(main())
