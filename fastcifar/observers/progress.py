"""The progress of a run: a live bar with the time left on a terminal and in a notebook, one line per epoch elsewhere.

The same lines stand above the bar. `fastcifar train` shows them, and `fastcifar.train` with `progress=True`.
"""

import sys
import textwrap
from typing import Any

from fastcifar.augment.plan import image_size
from fastcifar.config.config import Config
from fastcifar.data.messages import counted
from fastcifar.runs.record import epoch_accuracy
from fastcifar.training.observer import Observer, RunOutcome, RunView

WIDTH = 79
"""Columns of a line that a person reads: a terminal has 80 or more."""


class Lines(Observer):
    """Plain lines on stdout."""

    config: Config | None = None
    """Of the run, for the image size of each epoch; without it no size is said."""

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, flush=True)

    def expect(self, num_steps: int) -> None:
        """Says how many steps are to come in all, where that is not known from the start."""

    def move(self, step: int) -> None:
        """Shows that so many steps are done."""

    def close(self) -> None:
        """Ends the display."""

    def on_step(self, run: RunView) -> None:
        self.move(run.step)

    def on_epoch(self, run: RunView, row: dict[str, Any]) -> None:
        size_px = image_size(self.config, row["epoch"] - 1) if self.config else None
        self.say(epoch_line(row, -(-run.num_steps // run.steps_per_epoch), size_px))

    def on_end(self, result: RunOutcome) -> None:
        for line in [*notes(result.summary), accuracy_line(result.summary)]:
            self.say(line)


class Silent(Lines):
    """Prints nothing: processes that do not lead."""

    def say(self, line: str) -> None:
        pass


class Bar(Lines):
    """Lines above a live bar of steps with the time left.

    says_accuracy: whether a line with the accuracies ends the run, because no table gives them.
    """

    def __init__(self, num_steps: int, says_accuracy: bool = False) -> None:
        from rich import progress

        self.says_accuracy = says_accuracy
        columns = (progress.BarColumn(), progress.TaskProgressColumn(), progress.MofNCompleteColumn(),
                   progress.TextColumn("steps, left"), progress.TimeRemainingColumn())  # fmt: skip
        self.live = progress.Progress(*columns, transient=True)
        self.task = self.live.add_task("", total=num_steps)
        self.begin()

    def begin(self) -> None:
        """Shows the bar."""
        self.live.start()

    def say(self, line: str) -> None:
        self.live.console.print(fold(line), highlight=False, markup=False, soft_wrap=True)

    def expect(self, num_steps: int) -> None:
        self.live.update(self.task, total=num_steps)

    def move(self, step: int) -> None:
        self.live.update(self.task, completed=step)

    def on_end(self, result: RunOutcome) -> None:
        for line in notes(result.summary) + ([accuracy_line(result.summary)] if self.says_accuracy else []):
            self.say(line)

    def close(self) -> None:
        self.live.stop()


class NotebookBar(Bar):
    """The bar as an output of a notebook's cell that is drawn anew at each percent, above the lines.

    rich's own live display needs ipywidgets in a notebook; this needs nothing but the IPython that runs it.
    """

    def begin(self) -> None:
        from IPython.display import display

        self.percent = 0
        self.handle = display(self.live, display_id=True)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def move(self, step: int) -> None:
        super().move(step)
        percent = int(self.live.tasks[0].percentage)
        if percent != self.percent:
            self.percent = percent
            self.handle.update(self.live)

    def close(self) -> None:
        self.handle.update(self.live)


class OfSeveral(Observer):
    """Moves a display by the steps of one run of several, after the `before` steps of those before it. No lines."""

    def __init__(self, display: Lines, before: int) -> None:
        self.display, self.before = display, before

    def on_step(self, run: RunView) -> None:
        self.display.move(self.before + run.step)


def make_display(config: Config, num_steps: int) -> Lines:
    """What a training from Python shows: a bar in a notebook and on a terminal, lines elsewhere."""
    from rich.console import Console

    kind = NotebookBar if Console().is_jupyter else Bar if on_terminal() else None
    display = kind(num_steps, says_accuracy=True) if kind else Lines()
    display.config = config
    return display


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def fold(text: str, indent: str = "  ") -> str:
    """The text with line breaks between words, so that its lines fit; a word that is longer, a path say, stays whole.

    indent: what each new line begins with.
    """
    keep: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return "\n".join(textwrap.fill(line, WIDTH, **keep) for line in text.splitlines())


def epoch_line(row: dict[str, Any], num_epochs: int, size_px: int | None = None) -> str:
    """A metrics row as a plain line.

    size_px: of the training images, which are smaller in the low-resolution part; the accuracy jumps when it ends.
    """
    accuracy, time_s = epoch_accuracy(row), row["time_s"]
    size = "" if size_px is None else f"  {size_px} px"
    measured = "" if accuracy is None else f"  accuracy {accuracy:7.2%}"
    return (
        f"epoch {row['epoch']:{len(str(num_epochs))}d}/{num_epochs}  {row['phase']:5s}{size}  lr {row['lr']:<8.3g} "
        f"loss {row['loss_train']:.3f}{measured}  {time_s:5.{1 if time_s < 1000 else 0}f} s"
    )


def notes(summary: dict[str, Any]) -> list[str]:
    """Lines on what a user may want to know of a finished run, or to change."""
    raw, averaged = summary["accuracy_raw"], summary["accuracy_swa"]
    lines = []
    if averaged is not None and averaged < raw:
        lines.append(f"note: the averaged weights ({averaged:.2%}) are worse than the raw ones ({raw:.2%}): a longer "
                     "tail or a higher --swa-lr may help")  # fmt: skip
    if summary.get("stopped"):
        lines.append(f"stopped after {counted(summary['epochs'], 'epoch')}: {summary['stopped']}")
    if summary["steps_skipped_fp16"]:
        lines.append(f"note: fp16 overflow skipped {counted(summary['steps_skipped_fp16'], 'step')}")
    return lines


def accuracy_line(summary: dict[str, Any]) -> str:
    """The accuracies of a finished run in one line."""
    raw, averaged = summary["accuracy_raw"], summary["accuracy_swa"]
    more = f", averaged {averaged:.2%}" if averaged is not None else ""
    if summary["views"] > 1:
        more += f"; one view {summary['accuracy_one_view']:.2%}, the figure takes up to {summary['views']}"
    of = " on the built-in synthetic images, not CIFAR-10" if summary["dataset"] == "synthetic" else ""
    return f"accuracy {summary['accuracy']:.2%} (raw {raw:.2%}{more}){of}"
