"""The benches of the loader and of a step, in a small form."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import one_commit, one_thread, results  # noqa: F401 (fixtures)

from bench import floors, harness, loader, step
from bench.timed_step import FixedBlocks, NchwStep, count_untimed, set_up, time_parts, timed_apart
from fastcifar.training.task import Task


def test_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--images", "120", "--batches", "30", "50", "--repeats", "3", "--workers", "0", "--device", "cpu",
            "--executors", "torch", "dataloader", "--out", str(tmp_path)]  # fmt: skip
    real, count = loader.repeats_s, [0]

    def interrupted(*args: Any, **kwargs: Any) -> list[float]:
        count[0] += 1
        if count[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(loader, "repeats_s", interrupted)
    assert loader.main(argv) == 130
    assert (tmp_path / "table.md").exists() and len(harness.read_rows(tmp_path / "runs.jsonl")) == 5
    assert loader.main(argv) == 0
    assert count[0] == 6 + 12 - 5  # only the missing rows
    table = results(tmp_path, "rates.png")["table"]
    assert [(e["executor"], e["batch"]) for e in table] == [(k, b) for k in ("torch", "dataloader") for b in (30, 50)]
    for entry in table:
        rates = entry["images_per_s"]
        assert rates["n"] == 3 and 0 < rates["median"] <= rates["best"]


def test_loader_by_size_of_blocks(tmp_path: Path) -> None:
    """Each epoch has all its steps, in blocks of any size; only the executors know blocks."""
    argv = ["--images", "130", "--batches", "30", "--block-steps", "1", "3", "0", "--image-px", "1", "--repeats", "2"]
    argv += ["--executors", "torch", "dataloader", "torchvision", "--workers", "0"]
    assert loader.main([*argv, "--device", "cpu", "--out", str(tmp_path)]) == 0
    table = results(tmp_path)["table"]
    assert [(entry["executor"], entry["block_steps"]) for entry in table] == [
        ("torch", 1), ("torch", 3), ("torch", 0), ("dataloader", 0), ("torchvision", 0)
    ]  # fmt: skip
    for entry in table[:3]:
        assert set(entry["host_us"]) == set(loader.PARTS) and all(us > 0 for us in entry["host_us"].values())
    assert table[3]["host_us"] == table[4]["host_us"] == {}


def test_loader_names_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> None:
        raise loader.DaliUnavailable(ImportError("No module named 'nvidia'"))

    monkeypatch.setattr(loader, "DaliExecutor", missing)
    argv = ["--images", "60", "--batches", "30", "--repeats", "1", "--executors", "dali", "torch"]
    assert loader.main([*argv, "--device", "cpu", "--out", str(tmp_path)]) == 0
    table = results(tmp_path)
    assert "No module named" in table["skipped"]["dali"] and len(table["table"]) == 1


def test_plain_images_are_normalised_crops() -> None:
    dataset = harness.random_dataset(20)
    plain = loader.PlainImages(dataset, 2)
    x = torch.stack([plain[i][0] for i in range(len(plain))])
    assert x.shape == (20, 3, 32, 32) and abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.1


def test_step(tmp_path: Path, tiny_network: None) -> None:
    argv = ["--quick", "--variants", "fp32", "fp32-nchw", "--batch", "16", "--steps", "4", "--device", "cpu"]
    assert step.main([*argv, "--augment", "torch", "--scale", "small", "--out", str(tmp_path)]) == 0
    plain, nchw = results(tmp_path, "steps.png")["table"]
    for entry in (plain, nchw):
        for part in (*floors.PARTS, "step"):
            assert entry["parts_ms"][part]["n"] == 2 and entry["parts_ms"][part]["mean"] > 0
            assert entry["floor_ms"][part] > 0
    assert plain["train_ms"]["mean"] > 0 and plain["loader_cost"]["n"] == 2
    assert nchw["train_ms"]["n"] == 0  # the loop is channels_last
    assert step.main(["--variants", "fp8", "--out", str(tmp_path)]) == 2


def test_fixed_blocks_are_made_once(make_quick_task: Callable[..., Task]) -> None:
    task = make_quick_task(batch_size=32, low_res_px=24, low_res_until=0.5)
    task.executor.max_images = 3 * 32
    fixed = FixedBlocks(task)
    made = {id(block) for block in fixed.made.values()}
    blocks = list(fixed.blocks(task.plans()))
    assert {id(block) for block in blocks} == made and len(blocks) > len(made)
    expected = [(len(block), block.images.shape) for block in task.executor.blocks(task.plans())]
    assert [(len(block), block.images.shape) for block in blocks] == expected


def test_the_first_steps_are_not_timed(make_quick_task: Callable[..., Task]) -> None:
    task = make_quick_task(batch_size=32, epochs=1)
    (first, _), (timed, _) = timed_apart(task)
    assert (len(first), len(timed)) == (count_untimed(task), task.steps_per_epoch - count_untimed(task))
    assert torch.equal(torch.cat([first.index, timed.index]), task.plan(0).index)
    assert set(time_parts(task, nchw=True)) == set(floors.PARTS)


def test_nchw_batches_reach_the_network(make_quick_task: Callable[..., Task]) -> None:
    task = make_quick_task(batch_size=32, epochs=1)
    state, step = set_up(task, nchw=True)
    seen: list[torch.Tensor] = []
    state.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step.begin(next(task.executor.blocks(task.plans())))
    step(0)
    assert isinstance(step, NchwStep) and [x.is_contiguous() for x in seen] == [True]
