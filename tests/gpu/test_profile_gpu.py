"""--profile on a card: its kernels are in the trace, and a recorded step is a launch of a graph."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from conftest import make_config, make_dataset, task_of

from fastcifar.config.command import Command
from fastcifar.observers.profiling import RECORDED_STEPS, TABLE, TRACE
from fastcifar.observers.run_files import file_observers
from fastcifar.training.loop import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")]


def test_the_trace_of_a_card_has_kernels_and_launches_of_graphs(tmp_path):
    config = make_config(device="cuda", scale="small", compile="off", augment="torch", batch_size=100, lr_peak=0.2,
                         precision="bf16", epochs=1)  # fmt: skip
    task = replace(task_of(config, make_dataset(2000, 500)), command=Command(profile=True))
    train(task, file_observers(task, tmp_path))
    events = json.loads(gzip.decompress((tmp_path / TRACE).read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "cudaGraphLaunch" for event in events) == RECORDED_STEPS
    assert any(event.get("cat") == "kernel" for event in events) and (tmp_path / TABLE).read_text()
