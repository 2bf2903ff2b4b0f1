"""When a checkpoint is written: at an epoch's end, at the end of training, and before an interruption."""

import signal
from types import SimpleNamespace

import pytest
from conftest import Recorder, make_config, train_in_folder

from fastcifar.observers import checkpoints
from fastcifar.observers.checkpoints import Checkpoints, Interrupted
from fastcifar.runs import checkpoint


@pytest.fixture
def saved(monkeypatch):
    """Steps at which a checkpoint is written, instead of writing it."""
    steps: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, config, digest, tree: steps.append(tree["step"]))
    return steps


def drive(observer, num_steps=24, time_s=0.0, steps_per_epoch=8):
    """Tells an observer what the loop would tell it in a run whose epochs take `time_s` each."""
    run = SimpleNamespace(step=0, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    run.snapshot = lambda: {"step": run.step}
    while run.step < num_steps:
        run.step += 1
        run.is_over = run.step == num_steps
        observer.on_step(run)
        if run.step % steps_per_epoch == 0 or run.step == num_steps:
            epoch = -(-run.step // steps_per_epoch)
            observer.on_epoch(run, {"epoch": epoch, "time_s": epoch * time_s})


def make(tmp_path, every, **more):
    return Checkpoints(tmp_path / "checkpoint.pt", make_config(checkpoint_every=every), "digest", **more)


def test_checkpoints_follow_time_unless_told(make_quick_task, monkeypatch, saved, tmp_path):
    train_in_folder(make_quick_task(checkpoint_every=None), tmp_path)
    assert saved == [24]  # a run of seconds: at its end alone
    monkeypatch.setattr(checkpoints, "CHECKPOINT_AFTER_S", 0.0)
    train_in_folder(make_quick_task(checkpoint_every=None), tmp_path)
    assert saved[1:] == [8, 16, 24]


@pytest.mark.parametrize(("epochs", "every", "steps"), [(3, 1, [8, 16, 24]), (3, 2, [16, 24]), (3, 0, [24]),
                                                        (2.5, 1, [8, 16, 20])])  # fmt: skip
def test_without_a_signal_a_run_saves_at_the_ends_of_epochs_only(
    make_quick_task, saved, tmp_path, epochs, every, steps
):
    train_in_folder(make_quick_task(epochs=epochs, checkpoint_every=every), tmp_path)
    assert saved == steps


@pytest.mark.parametrize(("time_s", "steps"), [(10.0, [24]), (15.0, [16, 24]), (40.0, [8, 16, 24])])
def test_a_checkpoint_is_due_half_a_minute_after_the_last(saved, tmp_path, time_s, steps):
    drive(make(tmp_path, None), time_s=time_s)
    assert saved == steps


def test_a_process_saves_when_another_says_that_it_is_time(saved, tmp_path):
    """The clocks of two processes differ, and both must take part in a snapshot."""
    asked = []

    def agree(value):
        asked.append(value)
        return 1

    drive(make(tmp_path, None, agree=agree), time_s=0.1)
    assert saved == [8, 16, 24] and asked == [False, False]


def test_a_process_does_not_save_alone(saved, tmp_path):
    drive(make(tmp_path, 1, agree=lambda value: None))
    assert saved == [24]


def test_a_process_that_does_not_write_takes_part_in_the_snapshot(saved):
    taken = []
    observer = Checkpoints(None, make_config(checkpoint_every=1), "digest")
    run = SimpleNamespace(step=8, num_steps=24, steps_per_epoch=8, is_over=False, snapshot=lambda: taken.append(8))
    observer.on_epoch(run, {"epoch": 1, "time_s": 0.0})
    assert taken == [8] and saved == []


@pytest.mark.parametrize("step", [1, 5, 8, 13, 24])
def test_a_signal_is_obeyed_after_the_step_in_which_it_comes(make_quick_task, saved, tmp_path, step):
    recorder = Recorder()
    with pytest.raises(Interrupted, match="interrupted by signal 15") as end:
        train_in_folder(make_quick_task(checkpoint_every=0), tmp_path,
                        lambda: signal.SIGTERM if recorder.now >= step else None, recorder)  # fmt: skip
    assert saved == [step] and end.value.number == signal.SIGTERM


def test_a_full_disk_ends_the_run_only_where_the_file_is_the_last_chance(tmp_path, monkeypatch, said):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    drive(make(tmp_path, 1))
    assert len(said) == 3 and all("training goes on, the file before is kept" in line for line in said)
    with pytest.raises(OSError, match="No space left"):
        drive(make(tmp_path, 1, stop=lambda step: signal.SIGTERM))
