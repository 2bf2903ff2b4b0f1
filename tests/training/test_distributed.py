"""Several processes are one: the same losses, weights and seeds, one voice, and an end for all when one dies."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import distributed
import processes
import pytest
import torch
from conftest import make_config
from torch import nn

from fastcifar.observers.checkpoints import Checkpoints
from fastcifar.runs.checkpoint import load
from fastcifar.training.processes import (
    JoinedBatchNorm2d,
    World,
    agree,
    data_parallel,
    gather,
    join_batch_norms,
    join_processes,
    leader_first,
    leave_processes,
    sum_over_processes,
)

pytestmark = pytest.mark.xdist_group("warm processes")  # one server forks them all


def in_processes(size, work, *args):
    """What `work(world, *args)` gives in each of `size` processes that have joined; errors are given as text."""
    context = processes.forkserver()
    results = context.Queue()
    ranks = [context.Process(target=joined, args=(env, results, work, args)) for env in processes.ranks(size)]
    for rank in ranks:
        rank.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    assert processes.join_all(ranks) == [0] * size
    return [found[str(rank)] for rank in range(size)]


def joined(env, results, work, args):
    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        found = work(join_processes(), *args)
    except Exception as e:
        found = repr(e)
    leave_processes()
    results.put((env["RANK"], found))


# Joining and leaving


def join_and_leave(world):
    again = join_processes()  # a second time: the same group
    values = gather({"rank": world.rank}, world)
    total = sum_over_processes(torch.tensor([1.0, world.rank]), world).tolist()
    agreed = [agree(number, world) for number in (None, 15 if world.rank else None, 2 + 13 * world.rank)]
    order = leader_first(world, lambda: time.monotonic())
    leave_processes()
    return world.rank, world.size, world.is_leader, again.rank, values, total, agreed, order


def test_processes_join_agree_and_leave():
    first, second = in_processes(2, join_and_leave)
    assert first[:4] == (0, 2, True, 0) and second[:4] == (1, 2, False, 1)
    for found in (first, second):
        assert found[4:7] == ([{"rank": 0}, {"rank": 1}], [2.0, 1.0], [None, 15, 15])
    assert first[7] < second[7]


def test_a_world_of_one_does_nothing(monkeypatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False) if size is None else monkeypatch.setenv("WORLD_SIZE", size)
        world = join_processes()
        assert world == World() and world.is_leader and not torch.distributed.is_initialized()
    value, model = torch.ones(2), nn.Sequential(nn.BatchNorm2d(3))
    assert sum_over_processes(value, world) is value and gather(7, world) == [7]
    assert agree(15, world, 3) == 15 and agree(None, world) is None
    assert leader_first(world, lambda: 5) == 5
    join_batch_norms(model, world)
    assert type(model[0]) is nn.BatchNorm2d and data_parallel(model, world, torch.device("cpu")) is model
    leave_processes()


@pytest.mark.parametrize("env", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}])
def test_half_an_environment_is_told(monkeypatch, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="start several processes with torchrun"):
        join_processes()


def test_on_gpus_signals_are_asked_for_now_and_then():
    world = World(0, 2, agree_steps=16)
    assert [agree(15, world, step) for step in (1, 15, 17)] == [None] * 3


def due_by_own_clock(world, below):
    """Epochs after which a process took part in a checkpoint; the second one's clock runs ahead at first."""
    taken = []
    path = Path(below) / "checkpoint.pt" if world.is_leader else None
    observer = Checkpoints(path, make_config(checkpoint_every=None), "digest", agree=lambda value: agree(value, world))
    times = ([10.0, 29.0, 45.0, 50.0], [31.0, 40.0, 50.0, 55.0])[world.rank]
    for epoch, time_s in enumerate(times, 1):
        run = SimpleNamespace(
            step=8 * epoch, num_steps=80, steps_per_epoch=8, is_over=False, snapshot=lambda e=epoch: taken.append(e)
        )
        observer.on_epoch(run, {"epoch": epoch, "time_s": time_s})
    return taken


def test_processes_agree_on_whether_a_checkpoint_is_due(tmp_path):
    assert in_processes(2, due_by_own_clock, str(tmp_path)) == [[1, 3], [1, 3]]
    assert (tmp_path / "checkpoint.pt").exists()


# Batch norm

SHAPE = (12, 5, 6, 6)


def images(mean, seed=0):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 6)[:, None, None] + mean
    return x.contiguous(memory_format=torch.channels_last)


def norm_step(layer, x, weight):
    """Output, gradients and statistics of two training batches and an evaluation. x [2, B, C, H, W]."""
    torch.manual_seed(3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    outputs = []
    for batch in x:
        leaf = batch.detach().requires_grad_()
        y = layer(leaf)
        (y * weight).square().sum().backward()
        outputs += [y.detach(), leaf.grad]
    layer.eval()
    return {"each": [*outputs, layer(x[0]).detach()], "sums": [layer.weight.grad, layer.bias.grad],
            "same": [layer.running_mean, layer.running_var, layer.num_batches_tracked]}  # fmt: skip


def joined_norm_step(world, mean, momentum):
    mine = slice(world.rank, None, world.size)
    layer = nn.BatchNorm2d(5, momentum=momentum)
    layer.__class__ = JoinedBatchNorm2d
    x = [images(mean, seed)[mine].contiguous(memory_format=torch.channels_last) for seed in (0, 1)]
    found = norm_step(layer, x, images(0, 2)[mine])
    found["channels_last"] = found["each"][0].is_contiguous(memory_format=torch.channels_last)
    return {k: [v.tolist() for v in values] if isinstance(values, list) else values for k, values in found.items()}


@pytest.mark.parametrize(("size", "mean", "momentum"), [(2, 0.0, 0.4), (2, 300.0, 1.0), (4, 1.0, 0.1)])
def test_joined_batch_norm_is_that_of_the_whole_batch(size, mean, momentum):
    parts = in_processes(size, joined_norm_step, mean, momentum)
    x = [images(mean, seed).double() for seed in (0, 1)]
    whole = norm_step(nn.BatchNorm2d(5, momentum=momentum).double(), x, images(0, 2).double())
    close = {"rtol": 1e-4, "atol": 1e-4 * max(1, mean / 10)}
    for i, expected in enumerate(whole["each"]):
        found = torch.empty(SHAPE, dtype=torch.float64)
        for rank, part in enumerate(parts):
            found[rank::size] = torch.tensor(part["each"][i], dtype=torch.float64)
        torch.testing.assert_close(found, expected, **close)
    for i, expected in enumerate(whole["sums"]):
        found = sum(torch.tensor(part["sums"][i], dtype=torch.float64) for part in parts)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2 * max(1, mean / 10))
    for i, expected in enumerate(whole["same"]):
        assert all(part["same"][i] == parts[0]["same"][i] for part in parts)
        found = torch.tensor(parts[0]["same"][i], dtype=expected.dtype)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(part["channels_last"] for part in parts)


# Whole runs


@pytest.mark.parametrize(("optimizer", "sizes"), [("sgd", (2,)), ("muon", (4,))])
def test_losses_of_several_processes_are_those_of_one(tmp_path, optimizer, sizes):
    rows = distributed.losses(tmp_path, optimizer, sizes)
    assert [row["processes"] for row in rows] == [1, *sizes]
    for row in rows:
        assert row["exit"] == [0] * row["processes"] and row["steps"] == 20
        assert row["loss_difference"] <= 1e-4 and row["accuracy_difference"] <= 0.025  # one image of forty
    for size in sizes:
        for rank in range(1, size):
            assert (tmp_path / f"losses-{optimizer}-{size}.{rank}.log").read_text() == ""


def test_seeds_apart_are_the_seeds_of_one_process(tmp_path):
    found = distributed.seeds(tmp_path)
    assert found == {"runs": 3, "exit": [0, 0], "equal": True}
    summary = json.loads((tmp_path / "seeds-2/summary.json").read_text())
    assert summary["n"] == 3 and summary["seeds"] == [0, 1, 2]


def begin(tmp_path, *more):
    """A long run by two processes, of which at least an epoch is over."""
    argv = [*distributed.flags(tmp_path), "--epochs", "3000", "--out", str(tmp_path / "r"), *more]
    ranks = [processes.start(argv, tmp_path / f"{i}.log", env) for i, env in enumerate(processes.ranks(2))]
    assert processes.wait_until((tmp_path / "r/checkpoint.pt").exists, 120)
    return ranks


def test_when_a_rank_dies_the_others_end_and_the_run_goes_on_alone(tmp_path):
    first, second = begin(tmp_path)
    second.kill()
    since = time.monotonic()
    assert processes.join_all([first, second]) == [2, -9] and time.monotonic() - since < 60
    assert "error: another process of this run has ended" in (tmp_path / "0.log").read_text()
    step = load(tmp_path / "r/checkpoint.pt")["state"]["step"]
    assert step >= 8
    alone = processes.start(["--resume", str(tmp_path / "r")], tmp_path / "alone.log")
    assert processes.wait_until(lambda: load(tmp_path / "r/checkpoint.pt")["state"]["step"] > step, 120)
    alone.terminate()
    assert processes.join_all([alone]) == [143]


@pytest.mark.parametrize("who", [[0, 1], [1]], ids=["all", "one"])
def test_processes_agree_to_stop(tmp_path, who):
    """Also when only one of them hears the signal."""
    ranks = begin(tmp_path)
    for i in who:
        os.kill(ranks[i].pid, signal.SIGTERM)
    assert processes.join_all(ranks) == [143, 143]
    said = (tmp_path / "0.log").read_text()
    assert "interrupted and saved; continue with: torchrun --nproc-per-node=2" in said
    assert load(tmp_path / "r/checkpoint.pt")["state"]["step"] >= 8
    assert "interrupted and saved" not in (tmp_path / "1.log").read_text()


def test_a_batch_that_does_not_divide_is_told(tmp_path):
    argv = [*distributed.flags(tmp_path), "--batch-size", "25", "--out", str(tmp_path / "r")]
    codes = distributed.together(tmp_path, "odd", 2, argv)
    assert codes == [2, 2]
    assert "batch_size 25 does not divide among 2 processes" in (tmp_path / "odd.0.log").read_text()


def test_an_error_of_the_first_process_ends_all(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/checkpoint.pt").touch()
    codes = distributed.together(tmp_path, "taken", 2, [*distributed.flags(tmp_path), "--out", str(tmp_path / "r")])
    assert codes == [2, 2]
    assert "holds a run already" in (tmp_path / "taken.0.log").read_text()
    assert (tmp_path / "taken.1.log").read_text().splitlines()[-1].startswith("error: another process of this run has")
