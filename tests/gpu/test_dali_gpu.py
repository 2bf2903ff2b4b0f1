"""On a card: both executors give the same batches, neither makes the host wait, and how fast they are."""

import numpy as np
import pytest
import torch
from conftest import make_config

from fastcifar.augment.dali import DaliExecutor, has_dali
from fastcifar.augment.executor import Executor, TorchExecutor
from fastcifar.augment.images import to_device
from fastcifar.augment.plan import draw_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.skipif(not has_dali(), reason="DALI is not installed"),
]

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# Both compute in fp32 (FHWC) and round once, with constants that differ by an fp32 ulp: now and then a value falls on
# the other side of a rounding border. One ulp (fp32: two) of values in 2..4, the largest there are.
ONE_ULP = {torch.float32: 5e-7, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


def on_card(num: int, pad_px: int, dtype: torch.dtype = torch.float16):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, num)
    return to_device(images, labels, MEAN, STD, pad_px, torch.device("cuda"), dtype)


def plan_of(epoch: int, num: int, batch_size: int, pad_px: int = 2):
    return draw_plan(make_config(batch_size=batch_size, crop_pad_px=pad_px, mirror="random"), num, epoch)


@pytest.fixture
def no_sync():
    """Calling the value turns every hidden wait of torch for the card into an error, until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("max_images", [1500, 4000])
@pytest.mark.parametrize("dtype", ONE_ULP)
@pytest.mark.parametrize("pad_px", [0, 2, 4])
def test_same_batches_as_torch(pad_px, dtype, max_images):
    data = on_card(4000, pad_px, dtype)
    dali, reference = DaliExecutor(data, 8, max_images), TorchExecutor(data, cutout_px=8)
    for epoch, batch_size in enumerate((500, 2000, 500)):
        plan = plan_of(epoch, 4000, batch_size, pad_px)
        steps = list(dali.epoch(plan))  # kept, so a buffer used again would show
        assert len(steps) == len(plan)
        for (x, y), (x_ref, y_ref) in zip(steps, reference.epoch(plan), strict=True):
            assert x.is_cuda and x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(y, y_ref)
            difference = (x.float() - x_ref.float()).abs()
            assert difference.max() <= ONE_ULP[dtype]
            assert difference.mean() < 1e-5  # 16-bit arithmetic in DALI would give near 1e-3


def test_card_and_cpu_agree():
    data = on_card(500, 4, torch.float32)
    here = to_device(data.padded[:, 4:-4, 4:-4].cpu(), data.labels.cpu(), MEAN, STD, 4, torch.device("cpu"), data.dtype)
    plan = plan_of(0, 500, 250, 4)
    for (x, y), (x_cpu, y_cpu) in zip(DaliExecutor(data).epoch(plan), TorchExecutor(here).epoch(plan), strict=True):
        assert torch.equal(y.cpu(), y_cpu)
        assert (x.cpu() - x_cpu).abs().max() <= 5e-7


@pytest.mark.parametrize("kind", [TorchExecutor, DaliExecutor])
def test_a_block_does_not_make_the_host_wait(kind, no_sync):
    executor = kind(on_card(4000, 2), cutout_px=8, max_images=1000)
    blocks = executor.blocks([(plan_of(0, 4000, 500), 32)])
    next(blocks)  # first uses
    no_sync()
    total = torch.zeros((), device="cuda")
    for block in blocks:
        for step in range(len(block)):
            total += block.batch(step)[0].float().mean()
        blocks.work_ahead()
    torch.cuda.set_sync_debug_mode("default")
    assert total.isfinite()


@pytest.mark.parametrize("kind", [TorchExecutor, DaliExecutor])
def test_memory_is_not_used_again_too_early(kind):
    """A consumer that lags far behind, on a stream of its own, still reads the batches that were meant."""
    data = on_card(20000, 2)
    executor, plan = kind(data, max_images=1000), plan_of(0, 20000, 500)
    expected = [x.float().sum(dtype=torch.float64) for x, _ in TorchExecutor(data).epoch(plan)]
    a = torch.randn(4096, 4096, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    sums = []
    with torch.cuda.stream(stream):
        for x, _ in executor.epoch(plan):
            for _ in range(4):
                a = (a @ a).clamp(-1, 1)  # keeps the card busy while the host runs ahead
            sums.append(x.float().sum(dtype=torch.float64))
    stream.synchronize()
    for got, wanted in zip(sums, expected, strict=True):
        assert abs(got - wanted) < 1.0  # of 1.5 million values; another batch differs by hundreds


def test_an_abandoned_epoch_leaves_nothing_behind():
    data = on_card(4000, 2)
    dali, reference = DaliExecutor(data, max_images=1000), TorchExecutor(data)
    next(dali.epoch(plan_of(0, 4000, 500)))
    plan = plan_of(1, 4000, 500)
    for (x, y), (x_ref, y_ref) in zip(dali.epoch(plan), reference.epoch(plan), strict=True):
        assert torch.equal(y, y_ref)
        assert (x.float() - x_ref.float()).abs().max() <= ONE_ULP[torch.float16]


def test_a_graph_can_be_captured_between_epochs():
    dali = DaliExecutor(on_card(4000, 2), max_images=1000)
    for epoch in range(3):
        for x, _ in dali.epoch(plan_of(epoch, 4000, 500)):
            static = x.clone()
        del x
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = static * 2
        graph.replay()
        assert torch.equal(doubled, static * 2)


def test_a_small_call_makes_a_pipeline_slow(capsys):
    """Why a probe has a pipeline of its own: after a call with one image DALI's blocks have 3 elements (2.4)."""
    executor, reference = DaliExecutor(on_card(50_000, 2)), TorchExecutor(on_card(50_000, 2))
    plan = plan_of(0, 50_000, 500)

    def epoch_ms(executor: Executor) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in executor.blocks([(plan, 32)]):
            pass
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    as_it_is, torch_ms = (min(epoch_ms(e) for _ in range(4)) for e in (executor, reference))
    executor.used = {1: (executor._build(), 0)}
    for _ in executor.blocks([(plan.map(lambda draws: draws[:1, :1]), 32)]):
        pass
    executor.used = {50_000: executor.used[1]}
    spoiled = min(epoch_ms(executor) for _ in range(2))
    with capsys.disabled():
        print(f"\nDALI {as_it_is:.1f} ms an epoch, after a small call {spoiled:.1f} ms; torch {torch_ms:.1f} ms")
    assert spoiled > 3 * as_it_is


@pytest.mark.parametrize("batch_size", [500, 2000])
@pytest.mark.parametrize("kind", [TorchExecutor, DaliExecutor])
def test_speed(kind, batch_size, capsys):
    executor = kind(on_card(50_000, 2))
    plan = plan_of(0, 50_000, batch_size)
    for _ in executor.epoch(plan):
        pass  # warms up
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in executor.epoch(plan):
        pass
    end.record()
    end.synchronize()
    with capsys.disabled():
        print(f"\n{kind.__name__}, batch {batch_size}: {50_000 / start.elapsed_time(end) / 1e3:.2f} million images/s")
