"""The running mean is torch's AveragedModel kept in fp32; the refresh of batch norms is a mean over batches."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastcifar.config.config import Model
from fastcifar.models.networks import make_model
from fastcifar.optim.averaging import RunningMean, refresh_batch_norm


def small_net(norm: str = "bn") -> nn.Sequential:
    torch.manual_seed(0)
    layer: nn.Module = nn.BatchNorm2d(8, momentum=0.4) if norm == "bn" else nn.GroupNorm(8, 8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))


def batches(num: int, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator) * (1 + i) + i for i in range(num)]


def walk(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=generator))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def averaged(mean: RunningMean, model: nn.Module) -> nn.Module:
    """A copy of the model with the mean as its weights."""
    twin = copy.deepcopy(model)
    mean.copy_to(twin)
    return twin


# RunningMean


def test_mean_equals_averaged_model():
    model = small_net()
    mean, reference, generator = RunningMean(model), AveragedModel(model), torch.Generator().manual_seed(1)
    for _ in range(300):
        walk(model, generator)
        mean.add(model)
        reference.update_parameters(model)
    assert mean.count == 300
    ours = dict(averaged(mean, model).named_parameters())
    for name, expected in reference.module.named_parameters():
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_low_precision_weights_do_not_lose_their_mean(dtype):
    values = torch.linspace(1.0, 1.1, 2000)
    model = nn.Linear(1, 1, bias=False).to(dtype)
    mean = RunningMean(model)
    for value in values:
        nn.init.constant_(model.weight, value.item())
        mean.add(model)
    assert mean.mean["weight"].dtype == torch.float32
    assert mean.mean["weight"].item() == pytest.approx(values.to(dtype).double().mean().item(), abs=1e-5)
    assert mean.mean["weight"].item() == pytest.approx(1.05, abs=1e-3)
    assert averaged(mean, model).weight.dtype == dtype


def test_first_record_is_the_weights_themselves():
    model = small_net()
    mean = RunningMean(model)
    mean.add(model)
    assert same(state(averaged(mean, model)), state(model))


def test_the_mean_is_copied_in_place_and_keeps_the_layout_and_the_statistics():
    """In place: a CUDA graph of the network reads its weights where they lie."""
    model = make_model(Model(scale="small"), 10, seed=0)
    before, mean = state(model), RunningMean(model)
    mean.add(model)
    walk(model, torch.Generator().manual_seed(1))
    assert not same(state(model), before)
    places = [p.data_ptr() for p in model.parameters()]
    mean.copy_to(model)
    assert same(state(model), before) and [p.data_ptr() for p in model.parameters()] == places
    walk(model, torch.Generator().manual_seed(2))
    assert same(mean.mean, {n: before[n] for n in mean.mean})  # no shared memory
    for p in model.parameters():
        assert p.ndim < 4 or p.is_contiguous(memory_format=torch.channels_last)


def test_recording_goes_on_bit_for_bit_from_its_state():
    model, generator = small_net(), torch.Generator().manual_seed(1)
    whole = RunningMean(model)
    for _ in range(5):
        walk(model, generator)
        whole.add(model)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    second = RunningMean(model)
    second.load(torch.load(file, weights_only=True))
    for _ in range(5):
        walk(model, generator)
        whole.add(model)
        second.add(model)
    assert second.count == whole.count == 10
    assert same(second.mean, whole.mean)


def test_a_state_is_not_changed_by_recording_on():
    model = small_net()
    mean, other = RunningMean(model), RunningMean(model)
    mean.add(model)
    saved = copy.deepcopy(mean.state())
    other.load(mean.state())
    walk(model, torch.Generator().manual_seed(1))
    other.add(model)
    assert same(mean.mean, {k.removeprefix("mean."): v for k, v in saved.items() if isinstance(v, torch.Tensor)})


# refresh_batch_norm


def test_statistics_are_the_mean_over_the_batches():
    model, images = small_net(), batches(7)
    assert refresh_batch_norm(model, iter(images)) == 7
    first, second = (m for m in model if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        inner = [model[0](x) for x in images]  # [B, 8, 6, 6]
        outer = [model[3](torch.relu(nn.functional.batch_norm(h, None, None, training=True))) for h in inner]
    for norm, inputs in ((first, inner), (second, outer)):
        mean = torch.stack([h.mean(dim=(0, 2, 3)) for h in inputs]).mean(0)
        var = torch.stack([h.var(dim=(0, 2, 3)) for h in inputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=1e-5)
        assert norm.num_batches_tracked == 7


def test_what_was_there_before_does_not_matter():
    clean, dirty = small_net(), small_net()
    for m in dirty.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.fill_(1e6)  # type: ignore[union-attr]
            m.running_var.fill_(float("nan"))  # type: ignore[union-attr]
    refresh_batch_norm(clean, batches(3))
    refresh_batch_norm(dirty, batches(3))
    assert same(state(clean), state(dirty))


@pytest.mark.parametrize("training", [True, False])
def test_weights_mode_and_momentum_stay(training):
    model = small_net().train(training)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    refresh_batch_norm(model, batches(3))
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in model.named_parameters())
    assert all(m.training == training for m in model.modules())
    assert [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)] == [0.4, 0.1]


def test_the_averaged_copy_is_refreshed_and_the_original_is_not():
    model = small_net()
    before, mean = state(model), RunningMean(model)
    mean.add(model)
    twin = averaged(mean, model)
    refresh_batch_norm(twin, batches(3))
    assert same(state(model), before)
    assert not torch.equal(twin.get_buffer("1.running_mean"), model.get_buffer("1.running_mean"))


def broken_loader():
    yield from batches(2)
    raise RuntimeError("the loader broke")


@pytest.mark.parametrize(
    ("loader", "error"),
    [
        (lambda: iter(()), ValueError),
        (broken_loader, RuntimeError),
        (lambda: [[{"data": batches(1)[0]}]], TypeError),  # what a raw DALI iterator yields
        (lambda: [torch.zeros(4, 5, 8, 8)], RuntimeError),  # wrong number of channels
    ],
)
def test_any_error_restores_everything(loader, error):
    model = small_net().eval()
    refresh_batch_norm(model, batches(3))
    before = state(model)
    with pytest.raises(error):
        refresh_batch_norm(model, loader())
    assert same(state(model), before)
    assert not any(m.training for m in model.modules())
    assert [m.momentum for m in model if isinstance(m, nn.BatchNorm2d)] == [0.4, 0.1]


def test_low_precision_batches_under_autocast():
    model = small_net()
    with torch.autocast("cpu", torch.bfloat16):
        refresh_batch_norm(model, [x.bfloat16() for x in batches(3)])
    exact = small_net()
    refresh_batch_norm(exact, batches(3))
    torch.testing.assert_close(
        model.get_buffer("1.running_mean"), exact.get_buffer("1.running_mean"), rtol=0.02, atol=0.02
    )


def test_a_network_without_batch_norm_is_not_even_run():
    model = make_model(Model(scale="small", norm="gn-ws"), 10, seed=0)
    before = state(model)

    def no_batches():
        raise AssertionError("a batch was asked for")
        yield

    assert refresh_batch_norm(model, no_batches()) == 0
    assert same(state(model), before)


def test_the_refresh_reads_nothing_back():
    """momentum=None makes torch read its count back for each norm and batch: on a card a wait."""
    seen = []
    model = small_net()
    model[1].register_forward_pre_hook(lambda module, inputs: seen.append(module.momentum))
    refresh_batch_norm(model, batches(4))
    assert seen == [1, 1 / 2, 1 / 3, 1 / 4]
