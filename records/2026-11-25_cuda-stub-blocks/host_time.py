"""Host time of DALI's blocks: PYTHONPATH=. .venv/bin/python records/2026-11-25_cuda-stub-blocks/host_time.py

CPU time of the main thread for an epoch of 50,000 images of one pixel, the least of 30 epochs, in microseconds per
step of 500 images. DALI's own arithmetic runs in a thread of its own. torch's (picking pixels and labels, copying the
output), which a card would do, is timed by itself and subtracted.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from bench import harness
from fastcifar.augment.dali import DaliExecutor
from fastcifar.augment.executor import Executor
from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.augment.plan import EpochPlan, draw_plan
from fastcifar.augment.torch_executor import TorchExecutor
from fastcifar.recipes import RECIPES
from fastcifar.settings import with_settings

IMAGES, BATCH, EPOCHS = 50_000, 500, 30


def least_us(work: Callable[[], object]) -> float:
    """Per step, of the main thread."""
    taken = []
    for _ in range(EPOCHS):
        since = time.thread_time()
        work()
        taken.append(time.thread_time() - since)
    return 1e6 * min(taken) / (IMAGES // BATCH)


def one_pixel_images(pad_px: int) -> DeviceImages:
    dataset = harness.random_dataset(IMAGES, 10)
    images = to_device(dataset.x_train, dataset.y_train, dataset.mean, dataset.std, pad_px, torch.device("cpu"),
                       torch.bfloat16)  # fmt: skip
    return replace(images, padded=images.padded[:, : 1 + 2 * pad_px, : 1 + 2 * pad_px].contiguous())


def arithmetic(images: DeviceImages, plan: EpochPlan, steps: int) -> None:
    """What torch does on the device for an epoch of blocks of so many steps."""
    for rows in plan.index.split(steps):
        index = rows.flatten()
        images.padded[index]
        images.labels[index]
        torch.zeros(len(index), 1, 1, 3).clone().to(images.dtype)


def run(executor: Executor, plan: EpochPlan) -> None:
    for _ in executor.blocks([(plan, 1)]):
        pass


def main() -> None:
    torch.set_num_threads(1)
    print("| executor | padding | steps a block | random draws | block | of it arithmetic | rest: the host |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for pad_px in (2, 4):
        images = one_pixel_images(pad_px)
        config = with_settings(RECIPES["speedrun94"], batch_size=BATCH, crop_pad_px=pad_px)
        plan = draw_plan(config, IMAGES, 0)
        draws_us = least_us(lambda config=config: draw_plan(config, IMAGES, 1))
        for kind in (DaliExecutor, TorchExecutor):
            for steps in (1, IMAGES // BATCH):
                executor = kind(images, max_images=steps * BATCH)
                block_us = least_us(lambda executor=executor, plan=plan: run(executor, plan))
                if kind is TorchExecutor:  # all of it are operations on the device
                    print(f"| torch | {pad_px} | {steps} | {draws_us:.0f} | {block_us:.0f} | - | - |")
                    continue
                device_us = least_us(lambda images=images, plan=plan, steps=steps: arithmetic(images, plan, steps))
                print(f"| dali | {pad_px} | {steps} | {draws_us:.0f} | {block_us:.0f} | {device_us:.0f} |"
                      f" {block_us - device_us:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
