"""CPU time of the main thread for the parts of a step of swa30, small network, batch 500: median of 20 steps, ms.

OMP_NUM_THREADS=1 PYTHONPATH=. python records/2026-11-26_allocator/step_parts.py PATH
"""

import statistics
import sys
import time
from itertools import pairwise

import torch
import torch.nn.functional as F

from fastcifar.data.load import load
from fastcifar.recipes import find_recipe
from fastcifar.settings import with_settings
from fastcifar.training.hardware import resolve
from fastcifar.training.step import autocast
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import make_task, start

torch.set_num_threads(1)
config = with_settings(find_recipe("swa30"), scale="small", low_res_until=0, data=sys.argv[1])
config, hardware = resolve(config)
task = make_task(config, load(config.data.source, progress=False), hardware)
state = start(task, Stopwatch(hardware.device))
blocks = task.executor.blocks(task.plans(0))
state.model.train()
rows = []
for _ in range(25):
    times = [time.thread_time()]
    x, y = next(blocks).batch(0)
    times.append(time.thread_time())
    with autocast(hardware):
        logits = state.model(x)
    F.cross_entropy(logits, y, label_smoothing=0.2).backward()
    times.append(time.thread_time())
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    times.append(time.thread_time())
    rows.append([1e3 * (b - a) for a, b in pairwise(times)])
medians = [statistics.median(column) for column in zip(*rows[5:], strict=True)]
print("augmentation {:.1f}, forward and backward {:.1f}, optimizers {:.1f} ms".format(*medians))
