"""Where the host spends its time in a block of DALI: PYTHONPATH=. python records/2026-11-25_cuda-stub-blocks/parts.py

CPU time of the main thread, the least of 30, in microseconds per step of 500 images; images of one pixel, padding 2.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from host_time import IMAGES, one_pixel_images

from fastcifar.augment.dali import DaliExecutor
from fastcifar.augment.plan import draw_plan
from fastcifar.recipes import RECIPES

STEPS = 100


def timed(name: str, work: Callable[[], Any]) -> Any:
    taken = []
    for _ in range(30):
        since = time.thread_time()
        result = work()
        taken.append(time.thread_time() - since)
    print(f"| {name} | {1e6 * min(taken) / STEPS:.1f} |", flush=True)
    return result


torch.set_num_threads(1)
images = one_pixel_images(2)
timed("random draws", lambda: draw_plan(RECIPES["speedrun94"], IMAGES, 1))
plan = draw_plan(RECIPES["speedrun94"], IMAGES, 0)
flat = plan.map(torch.Tensor.flatten)
executor = DaliExecutor(images, max_images=IMAGES)
groups = timed(
    "group numbers", lambda: ((flat.offset_y * 5 + flat.offset_x) * 2 + flat.mirror).numpy().astype("uint16")
)
order = timed("sorting", lambda: groups.argsort(kind="stable"))
first = timed("first image of each group", lambda: np.flatnonzero(np.diff(groups[order].astype(np.int32), prepend=-1)))


def rows() -> Any:
    where = np.empty_like(order)
    where[order] = np.arange(len(order))
    return where


timed("rows", rows)
index = timed("index in the order of the groups", lambda: flat.index[torch.from_numpy(order)])
pixels = images.padded[index]  # a card does this
groups_of_images = timed("splitting", lambda: pixels.split(np.diff(first, append=len(order)).tolist()))


def call() -> Any:
    executor._set_feed(groups_of_images, flat, order[first])
    return executor.pipe.run(executor.stream)


timed("arguments and DALI's call", call)
