"""No call of a run leaves a DALI pipeline with small blocks: the calls, by the rule in DALI's header.

`SliceFlipNormalizePermutePadGpu::Setup` (include/dali/kernels/slice/slice_flip_normalize_permute_pad_gpu.h, DALI 2.4)
rounds the number of blocks up to whole waves of the card, and divides the elements anew by that number. The block size
is a member that nothing sets back.
"""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import task_of

from bench.harness import random_dataset
from fastcifar.augment import dali, executor
from fastcifar.augment.dali import MOST_CALLS, DaliExecutor, has_dali
from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import with_settings
from fastcifar.training.refresh import refresh_batches

H100_WAVE = 132 * 8
"""Blocks of 256 threads that an H100 holds at once: 132 multiprocessors of 2,048 threads."""
MOST_BLOCKS = 60_000
"""Goal for an epoch of 50,000 images."""

Call = list[int]
"""Elements of each sequence of a call."""


def blocks_of(calls: list[Call]) -> list[int]:
    """Number of blocks of each of a pipeline's calls, one after the other."""
    block_size, counts = 32 * 256, []

    def count(samples: Call) -> int:  # in float, as the header has it
        return int(np.ceil(np.float32(samples) / np.float32(block_size)).sum())

    for samples in calls:
        waves = -(-count(samples) // H100_WAVE)
        block_size = -(-sum(samples) // (waves * H100_WAVE))
        counts.append(count(samples))
    return counts


EPOCH: Call = [1_000 * 32 * 32 * 3] * 50


def test_what_a_probe_cost(capsys):
    """One image first, then epochs of 50,000 images in the same pipeline: blocks of 3 elements, for ever."""
    _, first, second = blocks_of([[32 * 32 * 3], EPOCH, EPOCH])
    assert first == second == 51_200_000
    alone = blocks_of([EPOCH] * 30)
    assert 19_000 < alone[0] < 20_000 and all(0 <= b - a <= H100_WAVE for a, b in pairwise(alone))
    with capsys.disabled():
        print(f"\nblocks an epoch: after a probe with one image {first:,}; without it {alone[0]:,} to {alone[-1]:,}")


@pytest.fixture
def recorded(monkeypatch):
    """Pipelines that only note the elements of their calls: {pipeline: calls}."""
    calls: dict[int, list[Call]] = defaultdict(list)

    class Pipeline:
        def __init__(self, executor: DaliExecutor) -> None:
            self.executor, self.number = executor, len(calls)
            calls[self.number] = []

        def run(self, stream: object):
            groups = [torch.from_dlpack(group) for group in self.executor.feed["sequences"]]
            calls[self.number].append([len(group) * 32 * 32 * 3 for group in groups])
            return (self,)

        def as_reshaped_tensor(self, shape: tuple[int, ...]):
            return None

    monkeypatch.setattr(DaliExecutor, "_build", lambda executor: Pipeline(executor))
    monkeypatch.setattr("nvidia.dali.plugin.pytorch.feed_ndarray", lambda *_, **__: None)
    monkeypatch.setattr(dali, "shrink", lambda x, _: x)
    monkeypatch.setattr(executor, "cutout", lambda x, *_: x)
    return calls


@pytest.fixture(scope="module")
def images():
    return random_dataset(50_000)


def calls_of_runs(config, images, runs: int = 1) -> None:
    """Makes all blocks of `runs` runs of one job, as on a card: a whole epoch at a time."""
    config = with_settings(config, augment="dali", device="cpu", scale="small", precision="fp32")
    task = task_of(config, images)
    executor, pad_px = task.executor, config.augment.crop_pad_px
    executor.max_images, executor.most_calls = 50_000, MOST_CALLS
    small = executor.images.padded[:, : 1 + 2 * pad_px, : 1 + 2 * pad_px]  # of one pixel, as nothing looks at them
    executor.images, executor.size = replace(executor.images, padded=small.contiguous()), 1
    for _ in range(runs):
        for _ in executor.blocks(task.plans()):
            pass
        for _ in refresh_batches(task):
            pass


@pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
@pytest.mark.parametrize(("recipe", "runs"), [("swa30", 2), ("speedrun94", 1)])
def test_the_calls_of_a_run_keep_large_blocks(recorded, images, recipe, runs, capsys):
    calls_of_runs(RECIPES[recipe], images, runs)
    probe, *others = recorded.values()
    assert probe == [[32 * 32 * 3]]  # a pipeline of its own
    assert all(len({sum(call) for call in calls}) <= 1 and len(calls) <= MOST_CALLS for calls in others)
    blocks = [(count, sum(call)) for calls in others for call, count in zip(calls, blocks_of(calls), strict=True)]
    epochs = [count for count, elements in blocks if elements == sum(EPOCH)]
    assert len(epochs) == runs * int(RECIPES[recipe].epochs)
    assert max(count for count, _ in blocks) <= MOST_BLOCKS
    with capsys.disabled():
        print(f"\n{recipe}, {runs} runs: {min(epochs):,} to {max(epochs):,} blocks an epoch")
