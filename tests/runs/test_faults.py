"""What goes wrong while training is told, and costs no more than it must."""

import errno
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import processes
import pytest
import torch
from commands import stop_at
from conftest import Recorder, train_in_folder
from safetensors.torch import load_file

from fastcifar.cli import main as cli
from fastcifar.config.schedules import PerEpoch
from fastcifar.files import lock_folder, write_atomically
from fastcifar.models.resnet9 import ResNet9
from fastcifar.runs import checkpoint
from fastcifar.training import loop
from fastcifar.training.loop import train
from fastcifar.training.state import FIRST_LOSS_SCALE, Diverged
from fastcifar.training.summary import skipped_steps

pytestmark = pytest.mark.usefixtures("here")

# Divergence


@pytest.fixture
def exploding_task(make_quick_task):
    """A run without a tail whose learning rate is far too large from its second epoch on."""
    task = make_quick_task(swa_start=None)
    schedule = PerEpoch(peak=0.5, factor=lambda epoch: 1.0 if epoch < 1 else 1e30)
    return replace(task, config=replace(task.config, schedule=schedule))


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(exploding_task, tmp_path):
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 2 at learning rate .* lower --lr-peak"):
        train_in_folder(exploding_task, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["state"]["step"] == 8


def test_ruined_weights_are_not_saved_over_good_ones(exploding_task, tmp_path):
    """An interruption in the middle of an epoch whose loss has not been looked at yet."""
    recorder = Recorder()
    with pytest.raises(Diverged, match="weights or loss are not finite at step 12"):
        train_in_folder(exploding_task, tmp_path, lambda: signal.SIGTERM if recorder.now >= 12 else None, recorder)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["state"]["step"] == 8


def test_accuracy_at_chance_after_the_first_epoch_is_told(make_quick_task):
    task = make_quick_task(batch_size=4, lr_peak=0.0, swa_start=None, schedule="constant")
    with pytest.raises(Diverged, match=r"after the first epoch, which is chance .* check the labels"):
        train(task)


# fp16 overflow


def test_skipped_steps_are_read_off_the_scale():
    assert [skipped_steps(FIRST_LOSS_SCALE / 2**n) for n in (0, 1, 5, 30)] == [0, 1, 5, 30]
    assert skipped_steps(0.0) == 162


def test_skipped_steps_are_those_of_torch():
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", FIRST_LOSS_SCALE, growth_interval=2**31 - 1)
    for overflow in (False, True, True, False, True):
        scaler.scale(weight.sum()).backward()
        if overflow:
            weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert skipped_steps(scaler.get_scale()) == 3 and weight.item() == -1


# Memory


def test_an_allocation_that_fails_is_known_as_such():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert all(map(checkpoint.ran_out_of_memory, (error.value, MemoryError(), torch.OutOfMemoryError("x"))))
    assert not any(
        map(checkpoint.ran_out_of_memory, (RuntimeError("shapes do not match"), ValueError("out of memory")))
    )


@pytest.mark.parametrize(("most", "advice"), [(12, "--batch-size 10 fits"), (5, "--batch-size 5 fits"),
                                              (0, "no batch size fits")])  # fmt: skip
def test_out_of_memory_names_the_batch_that_fits(call, base, monkeypatch, tmp_path, most, advice):
    def forward(self, x, plain=ResNet9.forward):
        if self.training and x.device.type == "cpu" and len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore lines.")
        return plain(self, x)

    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        assert call(*base, "--out", "r")[0] == 143
    before = (tmp_path / "r/checkpoint.pt").read_bytes()
    monkeypatch.setattr(ResNet9, "forward", forward)
    code, _, err = call("--resume", "r")
    assert code == 2 and len(err) == 1 and "with --batch-size 20" in err[0] and advice in err[0]
    assert (tmp_path / "r/checkpoint.pt").read_bytes() == before


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """Calls a test gets a folder, and what fills and frees the disk it lies on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk],
                                                capture_output=True).returncode:  # fmt: skip
        yield disk, lambda: fill(disk / "filler"), lambda: (disk / "filler").unlink()
        subprocess.run(["umount", disk], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # no file may grow: not ENOSPC but EFBIG, else the same
    limit = resource.setrlimit
    yield disk, lambda: limit(resource.RLIMIT_FSIZE, (4096, hard)), lambda: limit(resource.RLIMIT_FSIZE, (soft, hard))
    limit(resource.RLIMIT_FSIZE, (soft, hard))


def fill(path):
    with path.open("wb", buffering=0) as f:
        try:
            while True:
                f.write(b"x" * 4096)
        except OSError as e:
            assert e.errno == errno.ENOSPC


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_full_disk_keeps_what_was_there_and_loses_no_training(call, base, monkeypatch, tmp_path, small_disk):
    disk, fill_up, make_room = small_disk
    assert call(*base, "--out", str(tmp_path / "whole"))[0] == 0
    with monkeypatch.context() as patched:
        stop_at(patched, signal.SIGTERM)
        assert call(*base, "--out", str(disk / "r"))[0] == 143
    before = contents(disk / "r")
    fill_up()
    code, out, err = call("--resume", str(disk / "r"))
    assert code == 2 and len(err) == 1 and "model.safetensors" in err[0] and "make room" in err[0]
    warnings = [line for line in out if "checkpoint.pt" in line]
    assert len(warnings) == 2 and all("training goes on, the file before is kept" in line for line in warnings)
    after = contents(disk / "r")
    assert after["checkpoint.pt"] == before["checkpoint.pt"] and after["config.json"] == before["config.json"]
    assert not [name for name in after if name.endswith(".part")]
    make_room()
    assert call("--resume", str(disk / "r"))[0] == 0
    whole, again = (load_file(out / "model.safetensors") for out in (tmp_path / "whole", disk / "r"))
    assert [name for name, value in whole.items() if not torch.equal(value, again[name])] == []


def test_what_cannot_be_saved_is_not_called_saved(call, base, monkeypatch, small_disk):
    disk, fill_up, _ = small_disk
    (disk / "r").mkdir()

    def begin(*args, start=loop.initial_state):
        state = start(*args)
        fill_up()
        os.kill(os.getpid(), signal.SIGTERM)
        return state

    monkeypatch.setattr(loop, "initial_state", begin)
    code, out, err = call(*base, "--out", str(disk / "r"))
    assert code == 2 and len(err) == 1 and "checkpoint.pt" in err[0]
    assert not any("interrupted and saved" in line for line in out)


def test_output_that_nobody_reads_is_told(base):
    """As under `| head`: the reader is gone, which is no fault of the folder."""
    reader, writer = os.pipe()
    os.close(reader)
    flags = [flag for flag in base if flag != "--deterministic"]  # for which torch imports its compiler: seconds
    command = [sys.executable, str(processes.ROOT / "train_fast.py"), *flags, "--dry-run"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "read this output" in ended.stderr and "another folder" not in ended.stderr


def test_a_read_only_disk_is_told(call, base, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        disk.chmod(0o555)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("root, but not allowed to mount: nothing here is read-only")
    try:
        for out in (disk, disk / "r"):
            code, _, err = call(*base, "--out", str(out))
            assert code == 2 and len(err) == 1 and str(out) in err[0] and "choose another folder" in err[0]
            assert "make room" not in err[0]  # there is plenty
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", disk], check=True)


# Files


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a/b/file"
    write_atomically(path, lambda f: f.write(b"old"))

    def fail(f):
        f.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert contents(path.parent) == {"file": b"old"}
    write_atomically(path, lambda f: f.write(b"new"))
    assert contents(path.parent) == {"file": b"new"}


def test_files_are_made_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda f: f.write(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_folder_is_held_by_one(tmp_path):
    with lock_folder(tmp_path), pytest.raises(ValueError, match="another process trains in it"), lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        pass


@pytest.mark.xdist_group("warm processes")  # one server forks them all
def test_a_killed_process_holds_no_folder(base, tmp_path):
    process = processes.start([*base, "--epochs", "5000", "--out", str(tmp_path / "r")], tmp_path / "log")
    assert processes.wait_until((tmp_path / "r/checkpoint.pt").exists, 120)
    assert cli.train(["--resume", str(tmp_path / "r")]) == 2
    process.kill()
    processes.join_all([process])
    with lock_folder(tmp_path / "r"):
        pass
