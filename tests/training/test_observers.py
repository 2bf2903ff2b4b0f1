"""Observers: what they are told and when, and that one which raises ends the run."""

import json

import pytest
from conftest import Recorder, train_in_folder

from fastcifar.runs.observers import Observer
from fastcifar.training.loop import train
from fastcifar.training.state import Diverged


class Diary(Observer):
    """Writes down every call, with its own name, in a list that several may share."""

    def __init__(self, name, events, fails_at=None):
        self.name, self.events, self.fails_at = name, events, fails_at

    def note(self, *event):
        self.events.append((self.name, *event))
        if self.fails_at == event:
            raise LookupError(f"{self.name} has enough")

    def on_step(self, run):
        self.note("step", run.step)

    def on_epoch(self, run, row):
        assert row is run.history[-1] and row["step"] == run.step
        self.note("epoch", row["epoch"])

    def on_end(self, result):
        self.note("end")


def told(epochs):
    """What an observer is told of a run, in order; `epochs` are the last steps of its epochs."""
    events, step = [], 0
    for epoch, last in enumerate(epochs, 1):
        events += [("step", s) for s in range(step + 1, last + 1)] + [("epoch", epoch)]
        step = last
    return [*events, ("end",)]


@pytest.mark.parametrize(("epochs", "ends"), [(2, [8, 16]), (1.5, [8, 12]), (0.01, [1])])
def test_observers_hear_of_every_step_every_epoch_and_the_end(make_quick_task, epochs, ends):
    events = []
    train(make_quick_task(epochs=epochs), [Diary("a", events)])
    assert [event[1:] for event in events] == told(ends)


def test_observers_are_called_in_their_order(make_quick_task):
    events = []
    train(make_quick_task(epochs=2), [Diary("a", events), Diary("b", events)])
    assert events == [(name, *event) for event in told([8, 16]) for name in "ab"]


def test_rows_and_result_are_those_of_the_run(make_quick_task):
    class Keeping(Observer):
        def __init__(self):
            self.rows, self.results = [], []

        def on_epoch(self, run, row):
            self.rows.append(row)

        def on_end(self, result):
            self.results.append(result)

    keeping = Keeping()
    result = train(make_quick_task(), [keeping])
    assert keeping.rows == result.history and len(keeping.rows) == 3
    assert len(keeping.results) == 1 and keeping.results[0] is result


@pytest.mark.parametrize("event", [("step", 3), ("epoch", 1), ("end",)], ids=str)
def test_an_observer_that_raises_ends_the_run(make_quick_task, event):
    events = []
    observers = [Diary("a", events), Diary("b", events, fails_at=event), Diary("c", events)]
    with pytest.raises(LookupError, match="b has enough"):
        train(make_quick_task(), observers)
    before = told([8, 16, 24])
    before = before[: before.index(event)]
    assert events == [(name, *e) for e in before for name in "abc"] + [("a", *event), ("b", *event)]


def test_a_run_that_diverges_has_no_end(make_quick_task):
    events = []
    with pytest.raises(Diverged):
        train(make_quick_task(lr_peak=1e20), [Diary("a", events)])
    assert ("a", "end") not in events and ("a", "step", 8) in events


def test_a_resumed_run_tells_only_what_is_new(make_quick_task, tmp_path):
    train_in_folder(make_quick_task(epochs=3), tmp_path)
    events = []
    train(make_quick_task(epochs=3, resume=str(tmp_path), extend_epochs=4), [Diary("a", events)])
    assert [event[1:] for event in events] == told([8, 16, 24, 32])[27:]


def test_the_command_line_prints_an_epoch_a_line_and_keeps_the_same_rows(make_quick_task, tmp_path):
    recorder = Recorder()
    result = train_in_folder(make_quick_task(), tmp_path, progress=recorder)
    lines = [line for line in recorder.lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"] and recorder.now == 24
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == result.history
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"] == result.summary["accuracy"] and (tmp_path / "curves.png").stat().st_size > 0
