"""Compiled code is right, and is kept between processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_config

from fastcifar.training.compiling import COMPILE_CACHE, compile_cache_dir, keep_compiled_code

ROOT = Path(__file__).parents[2]
PROCESS = """
import json, sys, torch
from fastcifar.models.resnet9 import ResNet9
from fastcifar.config.settings import with_settings
from fastcifar.config.recipes import RECIPES
from fastcifar.training.compiling import keep_compiled_code
keep_compiled_code(with_settings(RECIPES["swa30"], cache_dir=sys.argv[1]))
torch.manual_seed(0)
model = ResNet9((4, 8), 10, "bn", "relu")
x = torch.randn(8, 3, 16, 16, dtype=torch.bfloat16)
def gradients():
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
plain = gradients()
model.compile(dynamic=False)
compiled = gradients()
from torch._dynamo.utils import counters
inductor = counters["inductor"]
print(json.dumps({"hits": inductor["fxgraph_cache_hit"], "misses": inductor["fxgraph_cache_miss"], "difference":
                  ((compiled - plain).norm() / plain.norm()).item()}))
"""


def compile_in_process(cache: Path) -> dict[str, float]:
    env = {
        **{k: v for k, v in os.environ.items() if k != COMPILE_CACHE},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run([sys.executable, "-c", PROCESS, str(cache)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow  # a C++ compiler works for a minute or more
@pytest.mark.timeout(900)
def test_a_second_process_finds_what_the_first_compiled_and_gradients_are_those_of_plain_code(tmp_path):
    """The gradient of a maximum was NaN in compiled bf16."""
    first, second = compile_in_process(tmp_path), compile_in_process(tmp_path)
    assert first["misses"] > 0 and first["hits"] == 0
    assert second["hits"] == first["misses"] and second["misses"] == 0
    assert first["difference"] < 0.1 and second["difference"] == first["difference"]
    assert any((tmp_path / "compiled").iterdir())


def test_the_folder_is_below_the_cache_unless_the_user_names_another(tmp_path, monkeypatch):
    config = make_config(cache_dir=str(tmp_path))
    monkeypatch.setenv(COMPILE_CACHE, "/elsewhere")
    keep_compiled_code(config)
    assert compile_cache_dir(config) == Path("/elsewhere") and os.environ[COMPILE_CACHE] == "/elsewhere"
    monkeypatch.delenv(COMPILE_CACHE)
    assert compile_cache_dir(config) == tmp_path / "compiled" and not (tmp_path / "compiled").exists()
    keep_compiled_code(config)
    assert os.environ[COMPILE_CACHE] == str(tmp_path / "compiled")


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(COMPILE_CACHE, raising=False)
    (tmp_path / "file").touch()
    keep_compiled_code(make_config(cache_dir=str(tmp_path / "file")))
    assert COMPILE_CACHE not in os.environ


def test_nothing_is_set_for_a_run_that_is_not_compiled(make_quick_task, tmp_path, monkeypatch):
    from fastcifar.training.prepare import warm_up
    from fastcifar.training.start import initial_state
    from fastcifar.training.stopwatch import Stopwatch

    monkeypatch.delenv(COMPILE_CACHE, raising=False)
    task = make_quick_task(cache_dir=str(tmp_path))
    warm_up(task, initial_state(task, Stopwatch()).model)
    assert COMPILE_CACHE not in os.environ and not list(tmp_path.iterdir())
