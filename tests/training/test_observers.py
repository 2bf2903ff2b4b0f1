"""Observers: what they are told and when, and that one which raises ends the run."""

import json

import pytest
import torch
from conftest import FakeSignals, Recorder, train_in_folder

from fastcifar.cli import train as command
from fastcifar.runs import checkpoint
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer, Stop
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


class Stopper(Diary):
    """Ends the run, normally, at one of the events."""

    def note(self, *event):
        super().note(*event)
        if event == self.at:
            raise Stop("good enough")


def stop_at(event, events=None):
    stopper = Stopper("stopper", [] if events is None else events)
    stopper.at = event
    return stopper


@pytest.mark.parametrize(("event", "steps"), [(("step", 3), 3), (("step", 8), 8), (("epoch", 1), 8), (("step", 12), 12),
                                              (("epoch", 2), 16), (("step", 24), 24)], ids=str)  # fmt: skip
def test_an_observer_ends_a_run_normally(make_quick_task, tmp_path, event, steps):
    """All observers hear of all that happened, and the folder is that of a run which ended there."""
    events, task = [], make_quick_task(swa_start=0.4, swa_every=1)  # the tail begins after step 10
    files = command.observers_of(task, tmp_path, FakeSignals(lambda: None))
    watching = [Diary("a", events), stop_at(event, events), Diary("b", events)]
    result = train(task, [*watching, *files])
    ends = [step for step in (8, 16, 24) if step < steps] + [steps]
    assert [e[1:] for e in events if e[0] == "b"] == told(ends) == [e[1:] for e in events if e[0] == "a"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary)) and summary["stopped"] == "good enough"
    assert (summary["num_steps"], summary["epochs"], summary["swa_recorded"]) == (steps, steps / 8, max(0, steps - 10))
    assert summary["train_pflop"] == pytest.approx(steps * 32 * task.flop_per_image[32] / 1e15)
    assert (summary["accuracy_swa"] is None) == (steps <= 10) and result.history[-1]["accuracy_test"] is not None
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "curves.png", "metrics.jsonl", "model.safetensors",
                                                    "summary.json"}  # fmt: skip
    assert checkpoint.load(tmp_path / "checkpoint.pt")["state"]["step"] == steps


def test_a_stopped_run_can_go_on_to_its_full_length(make_quick_task, tmp_path):
    whole = train(make_quick_task())
    task = make_quick_task()
    train(task, [stop_at(("step", 12)), *command.observers_of(task, tmp_path, FakeSignals(lambda: None))])
    resumed = train(make_quick_task(resume=str(tmp_path)))
    assert resumed.summary["stopped"] is None and resumed.summary["num_steps"] == 24
    assert all(torch.equal(p, whole.model.state_dict()[name]) for name, p in resumed.model.state_dict().items())


def test_a_run_stops_at_an_accuracy(make_quick_task):
    full = train(make_quick_task())
    accuracies = [row["accuracy_test"] for row in full.history]
    assert accuracies[0] < accuracies[1]
    stopped = train(make_quick_task(stop_at=accuracies[1]))
    assert stopped.history[-1]["epoch"] == 2 and stopped.summary["stopped"].endswith(f"at least {accuracies[1]:.2%}")
    assert train(make_quick_task(stop_at=0.9999)).summary["stopped"] in (None, "accuracy 100.00% is at least 99.99%")
    held_out = train(make_quick_task(stop_at=0.01, val_split=0.2))
    assert len(held_out.history) == 1 and held_out.history[0]["accuracy_val"] >= 0.01
    with pytest.raises(ValueError, match="stop-at has no effect here: it belongs to a run that measures before"):
        make_quick_task(stop_at=0.9, eval_every=3)


def test_a_run_that_was_interrupted_after_it_reached_its_accuracy_ends_there(make_quick_task, tmp_path):
    class Broken(Observer):
        def on_end(self, result):
            raise LookupError

    task = make_quick_task(stop_at=0.01)
    files = command.observers_of(task, tmp_path, FakeSignals(lambda: None))
    with pytest.raises(LookupError):
        train(task, [*files[:2], Broken()])  # rows and checkpoints, and no summary
    resumed = train(make_quick_task(stop_at=0.01, resume=str(tmp_path)))
    assert resumed.summary["num_steps"] == 8 and resumed.summary["stopped"].endswith("at least 1.00%")
    assert train(make_quick_task(stop_at=None, resume=str(tmp_path))).summary["num_steps"] == 24


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


def test_the_command_line_prints_an_epoch_a_line_and_keeps_the_same_rows(make_quick_task, tmp_path, curves):
    recorder = Recorder()
    result = train_in_folder(make_quick_task(), tmp_path, progress=recorder)
    lines = [line for line in recorder.lines if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"] and recorder.now == 24
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == result.history
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"] == result.summary["accuracy"] and (tmp_path / "curves.png").read_bytes().startswith(
        b"\x89PNG"
    )
