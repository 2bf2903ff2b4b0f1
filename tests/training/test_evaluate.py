"""Every test image counts once, whatever the batch size; the views of test-time augmentation are plain formulas."""

import copy

import numpy as np
import pytest
import torch
from replays import same_addresses

from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.training import evaluate
from fastcifar.training.hardware import Hardware
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import start

NUM = 23


def make_data(num: int = NUM) -> DeviceImages:
    """Images whose first pixel says which image it is; labels 0, 1, 2, 0, 1, 2, ..."""
    images = np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    return to_device(images, np.arange(num) % 3, (0.0,) * 3, (1.0,) * 3, 0, torch.device("cpu"), torch.float32)


CPU = Hardware(torch.device("cpu"), "fp32", "off", "torch", "small")


def right_answers(model, data, batch_size, *views) -> list[int]:
    return evaluate.RightAnswers(model, data, CPU, *views, batch=batch_size)().tolist()


def number_of(x: torch.Tensor) -> torch.Tensor:
    """[B] which image each row is."""
    return (x[:, 0, 0, 0] * 255).round().long()


def knows_all(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(number_of(x) % 3, 3).float()


@pytest.mark.parametrize("batch_size", [1, 5, 8, NUM - 1, NUM, 2 * NUM + 1])
def test_padding_of_the_last_batch_is_not_counted(batch_size):
    seen = []

    def model(x):
        seen.append(number_of(x))
        return knows_all(x)

    assert right_answers(model, make_data(), batch_size) == [NUM, NUM]
    assert {len(numbers) for numbers in seen} == {min(batch_size, NUM)}  # one shape: one compiled graph
    assert torch.cat(seen)[:NUM].tolist() == list(range(NUM))  # none dropped; then those that do not count again


@pytest.mark.parametrize("batch_size", [4, 23, 50])
def test_only_right_answers_count(batch_size):
    right = right_answers(lambda x: torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3), make_data(), batch_size)
    assert right == [(np.arange(NUM) % 3 == 1).sum()] * 2


def test_no_gradient_is_recorded():
    layer, seen = torch.nn.Linear(3 * 32 * 32, 3), []

    def model(x):
        seen.append(layer(x.flatten(1)))
        return seen[-1]

    right_answers(model, make_data(), 8)
    assert len(seen) == 3 and not any(logits.requires_grad for logits in seen)


def weighted_sum(x: torch.Tensor) -> torch.Tensor:
    """A model that tells every pixel from every other, not linear."""
    weights = torch.linspace(-1, 1, x[0].numel()).view(x.shape[1:])
    return torch.stack([(x * weights).sum(dim=(1, 2, 3)), (x.square() * weights).sum(dim=(1, 2, 3))], 1)


def shifted(x: np.ndarray, by: int) -> np.ndarray:
    """x [B, C, H, W] moved by pixels along both axes, the border mirrored without its edge, as np.pad reflects."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return padded[:, :, 1 - by : 33 - by, 1 - by : 33 - by]


def test_flip_is_the_mean_of_an_image_and_its_mirror():
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mirrored = torch.tensor(x.numpy()[..., ::-1].copy())
    expected = (weighted_sum(x) + weighted_sum(mirrored)) / 2
    torch.testing.assert_close(evaluate.with_views(weighted_sum, x, "flip")[1], expected)
    assert all(torch.equal(logits, weighted_sum(x)) for logits in evaluate.with_views(weighted_sum, x, "none"))


def test_flip_shift_weighs_six_views():
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(4, 2)
    for by, weight in ((0, 0.5), (1, 0.25), (-1, 0.25)):
        for side in (1, -1):
            view = torch.tensor(np.ascontiguousarray(shifted(x.numpy(), by)[..., ::side]))
            expected += weight / 2 * weighted_sum(view)
    torch.testing.assert_close(evaluate.with_views(weighted_sum, x, "flip-shift")[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tta", ["flip", "flip-shift"])
def test_only_unsure_images_get_views(tta):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, some = evaluate.with_views(weighted_sum, x, tta, share=0.3)
    _, every = evaluate.with_views(weighted_sum, x, tta)
    assert torch.equal(plain, weighted_sum(x))
    unsure = (plain[:, 0] - plain[:, 1]).abs().argsort()[:3]  # 0.3 of 8, rounded up
    viewed = torch.zeros(8, dtype=torch.bool).index_fill(0, unsure, True)
    torch.testing.assert_close(some[viewed], every[viewed])
    assert torch.equal(some[~viewed], plain[~viewed]) and not torch.allclose(some[viewed], plain[viewed])


@pytest.mark.parametrize("tta", evaluate.VIEWS)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_views_keep_channels_last(tta, share):
    def checked(x):
        assert x.is_contiguous(memory_format=torch.channels_last)
        return weighted_sum(x)

    right_answers(checked, make_data(), 8, tta, share)


class Again:
    """Repeats what it recorded, on the CPU; counts."""

    def __init__(self, fails_at: int = 0) -> None:
        self.recorded, self.replayed, self.fails_at = 0, 0, fails_at

    def __call__(self, work):
        self.recorded += 1
        if self.recorded == self.fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")

        repeat = same_addresses(work)

        def replay():
            self.replayed += 1
            repeat()

        return replay


@pytest.fixture
def models(make_quick_task):
    """A task, the network that is trained, and one of other weights and statistics; batches of 32 of 80 images."""

    def make(monkeypatch, **settings):
        monkeypatch.setattr(evaluate, "EVAL_BATCH", 32)
        monkeypatch.setattr(evaluate.RightAnswers.__init__, "__defaults__", ("none", 1.0, 32))
        task = make_quick_task(**settings)
        model = start(task, Stopwatch()).model
        other, noise = copy.deepcopy(model), torch.Generator().manual_seed(5)
        for value in (*model.state_dict().values(), *other.state_dict().values()):
            if value.is_floating_point():
                value += 0.2 * (torch.rand(value.shape, generator=noise) - (value.ndim > 1) / 2)
        return task, model, other

    return make


@pytest.mark.parametrize(("tta", "share"), [("none", 1.0), ("flip", 1.0), ("flip", 0.3), ("flip-shift", 0.25)])
def test_a_recorded_evaluation_equals_a_plain_one(models, monkeypatch, tta, share):
    """Of the network that is trained and of another one, whose weights are lent to it and taken back."""
    settings = {"tta": tta, "tta_share": share} if tta != "none" else {"tta": tta}
    task, model, other = models(monkeypatch, **settings)
    again, before = Again(), copy.deepcopy(model.state_dict())
    recorded, plain = evaluate.Evaluator(task, model, again), evaluate.Evaluator(task, model)
    assert again.recorded == (1 if tta == "none" else 2) and again.replayed == 0
    found = set()
    for network in (model, other, model):
        for views in (("none", 1.0), (tta, share)):
            expected = plain(network, task.test, *views)
            assert recorded(network, task.test, *views) == expected
            found.add(expected)
    assert again.replayed == 3 * 2 * 3  # networks, views, batches
    assert len(found) >= 2  # else equal figures would show nothing
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_evaluation_that_cannot_be_recorded_is_plain(models, monkeypatch, said):
    task, model, other = models(monkeypatch, tta="flip")
    again = Again(fails_at=2)
    half = evaluate.Evaluator(task, model, again)  # the second graph, that of the views, fails
    (line,) = said
    assert "recording the evaluation" in line and "going on without it" in line
    expected = evaluate.Evaluator(task, model)(other, task.test, "flip")
    assert half(other, task.test, "flip") == expected and again.replayed == 0
