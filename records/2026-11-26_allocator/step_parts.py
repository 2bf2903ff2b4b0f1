"""CPU time of the main thread for the parts of a step of swa30, small network, batch 500: median of 20 steps, ms."""

import time, torch

torch.set_num_threads(1)
from fastcifar.recipes import find_recipe
from fastcifar.settings import with_settings
from fastcifar.data.load import load
from fastcifar.training.hardware import resolve
from fastcifar.training.task import make_task, start
from fastcifar.training.step import make_step, Step
from fastcifar.training.stopwatch import Stopwatch

cfg = with_settings(find_recipe("swa30"), scale="small", low_res_until=0, data="PATH/cifar10-png.tar.xz")
cfg, hw = resolve(cfg)
t = make_task(cfg, load(cfg.data.source, progress=False), hw)
s = start(t, Stopwatch(hw.device))
st = Step(t, s, s.model)
tt = time.thread_time
mk = []
up = []
fw = []
op = []
blocks = t.executor.blocks(t.plans(0))
s.model.train()
from fastcifar.training.step import autocast
import torch.nn.functional as F

for i in range(25):
    a = tt()
    b = next(blocks)
    x, y = b.batch(0)
    c = tt()
    with autocast(hw):
        l = s.model(x)
    loss = F.cross_entropy(l, y, label_smoothing=0.2)
    loss.backward()
    d = tt()
    for o in s.optimizers:
        o.step()
        o.zero_grad(set_to_none=True)
    e = tt()
    mk.append(c - a)
    fw.append(d - c)
    op.append(e - d)
import statistics as S

print("new make %.1f fwbw %.1f opt %.1f ms" % tuple(1e3 * S.median(v[5:]) for v in (mk, fw, op)))
