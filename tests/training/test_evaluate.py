"""Every test image counts once, whatever the batch size; the views of test-time augmentation are plain formulas."""

import copy

import numpy as np
import pytest
import torch
from replays import same_addresses

from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.models import folded as folding
from fastcifar.training import evaluate
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch

NUM = 23


def make_data(num: int = NUM) -> DeviceImages:
    """Images whose first pixel says which image it is; labels 0, 1, 2, 0, 1, 2, ..."""
    images = np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    return to_device(images, np.arange(num) % 3, (0.0,) * 3, (1.0,) * 3, 0, torch.device("cpu"), torch.float32)


@pytest.fixture
def right_answers(monkeypatch):
    """How many images a model gets right, plainly and with views, in batches of at most so many."""

    def count(model, data, batch_size, *views) -> list[int]:
        monkeypatch.setattr(evaluate, "EVAL_BATCH", batch_size)
        return evaluate.sums(model, data, *views).tolist()[:2]

    return count


def number_of(x: torch.Tensor) -> torch.Tensor:
    """[B] which image each row is."""
    return (x[:, 0, 0, 0] * 255).round().long()


def knows_all(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(number_of(x) % 3, 3).float()


@pytest.mark.parametrize("batch_size", [1, 5, 8, NUM - 1, NUM, 2 * NUM + 1])
def test_padding_of_the_last_batch_is_not_counted(right_answers, batch_size):
    seen = []

    def model(x):
        seen.append(number_of(x))
        return knows_all(x)

    assert right_answers(model, make_data(), batch_size) == [NUM, NUM]
    assert len(seen) == -(-NUM // batch_size)
    assert {len(numbers) for numbers in seen} == {-(-NUM // len(seen))}  # one shape: one compiled graph
    assert torch.cat(seen)[:NUM].tolist() == list(range(NUM))  # none dropped; then those that do not count again


@pytest.mark.parametrize("batch_size", [4, 23, 50])
def test_only_right_answers_count(right_answers, batch_size):
    right = right_answers(lambda x: torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3), make_data(), batch_size)
    assert right == [(np.arange(NUM) % 3 == 1).sum()] * 2


@pytest.mark.parametrize("batch_size", [4, 23, 50])
def test_the_loss_is_the_cross_entropy_of_the_plain_logits(monkeypatch, batch_size):
    monkeypatch.setattr(evaluate, "EVAL_BATCH", batch_size)
    data = make_data()

    def model(x):  # mirrored images have other logits
        return torch.stack([x[:, 0, 0, 0], x[:, 1, 0, 3], x[:, 2, 0, -1]], 1)

    _, _, loss = evaluate.sums(model, data, "flip").tolist()
    logits = model(data.batch(torch.arange(NUM))).double()
    expected = sum(torch.logsumexp(row, 0) - row[label] for row, label in zip(logits, data.labels, strict=True))
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_no_gradient_is_recorded(right_answers):
    layer, seen = torch.nn.Linear(3 * 32 * 32, 3), []

    def model(x):
        seen.append(layer(x.flatten(1)))
        return seen[-1]

    right_answers(model, make_data(), 8)
    assert (
        len(seen) == 3 and all(len(logits) == 8 for logits in seen) and not any(logits.requires_grad for logits in seen)
    )


def weighted_sum(x: torch.Tensor) -> torch.Tensor:
    """A model that tells every pixel from every other, not linear."""
    weights = torch.linspace(-1, 1, x[0].numel()).view(x.shape[1:])
    return torch.stack([(x * weights).sum(dim=(1, 2, 3)), (x.square() * weights).sum(dim=(1, 2, 3))], 1)


def shifted(x: np.ndarray, by: int) -> np.ndarray:
    """x [B, C, H, W] moved by pixels along both axes, the border mirrored without its edge, as np.pad reflects."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return padded[:, :, 1 - by : 33 - by, 1 - by : 33 - by]


def random_x(num: int = 4) -> torch.Tensor:
    return torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_flip_is_the_mean_of_an_image_and_its_mirror():
    x = random_x()
    mirrored = torch.tensor(x.numpy()[..., ::-1].copy())
    expected = (weighted_sum(x) + weighted_sum(mirrored)) / 2
    torch.testing.assert_close(evaluate.flip(weighted_sum, x, weighted_sum(x)), expected)


def test_flip_shift_weighs_six_views():
    x = random_x()
    expected = torch.zeros(4, 2)
    for by, weight in ((0, 0.5), (1, 0.25), (-1, 0.25)):
        for side in (1, -1):
            view = torch.tensor(np.ascontiguousarray(shifted(x.numpy(), by)[..., ::side]))
            expected += weight / 2 * weighted_sum(view)
    found = evaluate.flip_shift(weighted_sum, x, weighted_sum(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tta", ["flip", "flip-shift"])
def test_views_go_to_the_least_sure_of_all_images(monkeypatch, tta):
    """Also where one batch holds more of them than another: batches of 8, 8 and 7 images, views in batches of 7."""
    data = make_data()
    monkeypatch.setattr(evaluate, "EVAL_BATCH", 8)
    x = data.batch(torch.arange(NUM))
    plain, some = evaluate.all_logits(weighted_sum, data, tta, share=0.3)
    assert torch.equal(plain, weighted_sum(x))
    margins = (plain[:, 0] - plain[:, 1]).abs()
    unsure = margins.argsort()[:7]  # 0.3 of 23, rounded up
    assert sorted((unsure // 8).bincount(minlength=3).tolist()) != [2, 2, 3]  # of each batch alike would be others
    viewed = torch.zeros(NUM, dtype=torch.bool).index_fill(0, unsure, True)
    every = evaluate.VIEWS[tta](weighted_sum, x, plain)
    torch.testing.assert_close(some[viewed], every[viewed])
    assert torch.equal(some[~viewed], plain[~viewed]) and not torch.allclose(some[viewed], plain[viewed])


def test_all_images_get_views_by_default_and_none_without():
    data = make_data()
    x = data.batch(torch.arange(NUM))
    plain, every = evaluate.all_logits(weighted_sum, data, "flip")
    torch.testing.assert_close(every, evaluate.flip(weighted_sum, x, weighted_sum(x)))
    assert all(torch.equal(found, plain) for found in evaluate.all_logits(weighted_sum, data))


@pytest.mark.parametrize("tta", evaluate.VIEWS)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_views_keep_channels_last_and_come_in_the_batches_that_are_warmed(right_answers, tta, share):
    sizes = set()

    def checked(x):
        assert x.is_contiguous(memory_format=torch.channels_last)
        sizes.add(len(x))
        return torch.nn.functional.pad(weighted_sum(x), (0, 1))  # three classes

    data = make_data()
    right_answers(checked, data, 8, tta, share)
    assert sizes == evaluate.batch_sizes(data, tta, share)


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
def make_network(make_quick_task, monkeypatch):
    """A task of 80 test images in batches of at most 32, and a network of its own weights and statistics."""

    def make(**settings):
        monkeypatch.setattr(evaluate, "EVAL_BATCH", 32)
        task = make_quick_task(**settings)
        model = initial_state(task, Stopwatch()).model
        change(model, 5)
        return task, model

    return make


@torch.no_grad()
def change(model: torch.nn.Module, seed: int) -> None:
    """Other weights and statistics, in place."""
    noise = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value += 0.2 * (torch.rand(value.shape, generator=noise) - (value.ndim > 1) / 2)


@pytest.mark.parametrize(("tta", "share"), [("none", 1.0), ("flip", 1.0), ("flip", 0.3), ("flip-shift", 0.25)])
def test_a_recorded_evaluation_equals_a_plain_one(make_network, tta, share):
    """Also after the weights have changed in place: a replay reads them where they lie."""
    settings = {"tta": tta, "tta_share": share} if tta != "none" else {"tta": tta}
    task, model = make_network(**settings)
    again, before = Again(), copy.deepcopy(model.state_dict())
    recorded, plain = evaluate.Evaluator(task, model, again), evaluate.Evaluator(task, model)
    assert again.recorded == (1 if tta == "none" else 2) and again.replayed == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = set()
    for seed in range(6, 10):
        model.load_state_dict(before)
        change(model, seed)
        for views in (("none", 1.0), (tta, share)):
            expected = plain(task.test, *views)
            assert recorded(task.test, *views) == expected
            found.add(expected)
    assert again.replayed == 4 * 2  # weights, views
    assert len(found) >= 2  # else equal figures would show nothing


def test_a_recorded_evaluation_with_kernels_folds_the_weights_of_now(make_network, monkeypatch):
    task, model = make_network(tta="flip", tta_share=0.3)
    monkeypatch.setattr(evaluate, "is_fused", lambda model: True)
    folded, before = [], copy.deepcopy(model.state_dict())

    def fold_without_kernels(model, dtype, kernel):
        folded.append(kernel)
        return folding.fold(model, dtype)

    monkeypatch.setattr(evaluate, "fold", fold_without_kernels)
    recorded, plain = evaluate.Evaluator(task, model, Again()), evaluate.Evaluator(task, model)
    found = set()
    for seed in range(6, 10):
        model.load_state_dict(before)
        change(model, seed)
        expected, measured = plain(task.test, "flip", 0.3), recorded(task.test, "flip", 0.3)
        found.add(expected[:2])
        assert measured[:2] == expected[:2] and measured.loss == pytest.approx(expected.loss, rel=1e-4)  # folded
    assert len(found) >= 2 and folded == [True] * (2 + 2 + 4)  # rehearsals, recordings, replays


def test_an_evaluation_that_cannot_be_recorded_is_plain(make_network, said):
    task, model = make_network(tta="flip")
    again = Again(fails_at=2)
    half = evaluate.Evaluator(task, model, again)  # the second graph, that of the views, fails
    (line,) = said
    assert "capturing the evaluation" in line and "going on without it" in line
    change(model, 6)
    expected = evaluate.Evaluator(task, model)(task.test, "flip")
    assert half(task.test, "flip") == expected and again.replayed == 0
