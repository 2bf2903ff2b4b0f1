"""How far does a change of the first weights by 1e-6 move the losses of a short run on few images?

PYTHONPATH=.:tests python records/2026-11-26_h100/rounding.py
"""

import torch
from conftest import make_config, make_dataset

from fastcifar.training import loop
from fastcifar.training.hardware import choose_hardware
from fastcifar.training.task import make_task

DATASET, warm_up = make_dataset(2000, 500), loop.warm_up


def losses(noise):
    config = make_config(
        device="cpu", scale="full", compile="off", augment="torch", batch_size=100, optimizer="muon", lr_peak=0.05,
        activation="silu", epochs=3, low_res_px=22, low_res_until=0.4, precision="fp32",
    )  # fmt: skip

    def changed(task, model):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + noise * torch.randn(p.shape, generator=generator))
        return warm_up(task, model)

    loop.warm_up = changed
    return [
        round(row["loss_train"], 5) for row in loop.train(make_task(config, DATASET, choose_hardware(config))).history
    ]


for noise in (0, 1e-6):
    print(noise, losses(noise), flush=True)
