"""Every test image counts once, whatever the batch size; the views of test-time augmentation are plain formulas."""

import numpy as np
import pytest
import torch

from fastcifar.augment.images import DeviceImages, to_device
from fastcifar.augment.images import test_batches as batches_of
from fastcifar.training import evaluate

NUM = 23


def make_data(num: int = NUM) -> DeviceImages:
    """Images whose first pixel says which image it is; labels 0, 1, 2, 0, 1, 2, ..."""
    images = np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)
    return to_device(images, np.arange(num) % 3, (0.0,) * 3, (1.0,) * 3, 0, torch.device("cpu"), torch.float32)


def number_of(x: torch.Tensor) -> torch.Tensor:
    """[B] which image each row is."""
    return (x[:, 0, 0, 0] * 255).round().long()


def knows_all(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(number_of(x) % 3, 3).float()


@pytest.mark.parametrize("batch_size", [1, 5, 8, NUM - 1, NUM, 2 * NUM + 1])
def test_padding_of_the_last_batch_is_not_counted(batch_size):
    data, batches = make_data(), list(batches_of(make_data(), batch_size))
    assert {len(x) for x, _, _ in batches} == {batch_size}  # one shape: one compiled graph
    seen = torch.cat([number_of(x)[:real] for x, _, real in batches])
    assert seen.tolist() == list(range(NUM))  # none dropped, none twice
    assert evaluate.count_right(knows_all, batches_of(data, batch_size)).tolist() == [NUM, NUM]


@pytest.mark.parametrize("batch_size", [4, 23, 50])
def test_only_right_answers_count(batch_size):
    right = evaluate.count_right(lambda x: torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3),
                                 batches_of(make_data(), batch_size))  # fmt: skip
    assert right.dtype == torch.int64
    assert right.tolist() == [(np.arange(NUM) % 3 == 1).sum()] * 2


def test_no_gradient_is_recorded():
    layer = torch.nn.Linear(3 * 32 * 32, 3)
    assert not evaluate.count_right(lambda x: layer(x.flatten(1)), batches_of(make_data(), 8)).requires_grad


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

    evaluate.count_right(checked, batches_of(make_data(), 8), tta, share)
