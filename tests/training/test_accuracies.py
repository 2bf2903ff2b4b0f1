"""Which accuracy is of which weights and images, in sets whose held-out and test images disagree."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastcifar.data.dataset import Dataset, hold_out
from fastcifar.training import loop
from fastcifar.training.evaluate import Measured
from fastcifar.training.loop import train
from fastcifar.training.observer import Observer
from fastcifar.training.state import Diverged
from fastcifar.training.summary import Accuracies


@pytest.fixture
def disagreeing(dataset: Dataset) -> Dataset:
    """A test image is a mixture of two images and has the label of one of them, so a network is seldom right there.

    Held-out images are as the training images.
    """
    random = np.random.default_rng(7)
    first, second = random.integers(0, len(dataset.y_train), (2, 800))
    share = random.uniform(0.3, 0.7, (800, 1, 1, 1))
    mixed = (share * dataset.x_train[first, :] + (1 - share) * dataset.x_train[second, :]).astype(np.uint8)
    return replace(dataset, x_test=mixed, y_test=dataset.y_train[first])


class LastWeights(Observer):
    """A copy of the network after the last step, and its accuracies after every epoch."""

    def on_step(self, run):
        if run.step == run.num_steps:
            self.model = copy.deepcopy(run.model)


@torch.no_grad()
def share_right(model, data: Dataset, images: np.ndarray, labels: np.ndarray, flip: bool = False) -> float:
    """Accuracy of a network, computed plainly, with the mean of an image and its mirror if `flip`."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    model.eval()
    logits = model(x) + model(x.flip(-1)) if flip else model(x)
    return (logits.argmax(1).numpy() == labels).mean()


def test_the_figures_of_a_run_are_of_the_test_images(make_quick_task, disagreeing):
    task = make_quick_task(disagreeing, epochs=6, val_split=0.25, tta="flip")
    last = LastWeights()
    result = train(task, [last])
    summary, test = result.summary, (disagreeing.x_test, disagreeing.y_test)
    expected = {
        "accuracy_raw": share_right(last.model, disagreeing, *test),
        "accuracy_swa": share_right(result.model, disagreeing, *test),
        "accuracy_tta": share_right(result.model, disagreeing, *test, flip=True),
    }
    one_image = 1.01 / 800  # of equal logits, which of the two is larger is a matter of rounding
    assert {name: summary[name] for name in expected} == pytest.approx(expected, abs=one_image)
    assert summary["accuracy"] == summary["accuracy_tta"]
    _, held_out, labels = hold_out(disagreeing, 0.25)
    watched = share_right(last.model, disagreeing, held_out, labels)
    assert watched > 1.5 * max(expected.values()), "else this test would show nothing"
    assert result.history[-1]["accuracy_val"] == pytest.approx(watched, abs=1.01 / len(labels))


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations give these figures (plain, with views), one after the other; the list gets (classifier, images)."""

    def script(*figures):
        asked, left = [], iter(figures)

        def evaluate(self, images, *views):
            asked.append((self.model.head.weight.detach().clone(), images))
            return Measured(*next(left), loss=1.0)

        monkeypatch.setattr(loop.Evaluator, "__call__", evaluate)
        return asked

    return script


FIGURES = ("accuracy", "accuracy_raw", "accuracy_swa", "accuracy_tta")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"tta": "flip"}, (0.3, 0.5, 0.4, 0.3)), ({"tta": "none"}, (0.4, 0.5, 0.4, None)),
     ({"tta": "flip", "swa_start": None}, (0.3, 0.5, None, 0.3)),
     ({"tta": "none", "swa_start": None}, (0.5, 0.5, None, None))],
)  # fmt: skip
def test_the_raw_figure_is_of_the_last_epoch_and_the_final_one_not_the_largest(
    make_quick_task, scripted, settings, expected
):
    task = make_quick_task(epochs=3, **settings)
    asked = scripted((0.9, 0.9), (0.8, 0.8), (0.5, 0.5), (0.4, 0.3))
    summary = train(task).summary
    assert tuple(summary[name] for name in FIGURES) == expected
    assert all(images is task.test for _, images in asked) and len(asked) == 4


def test_with_held_out_images_epochs_are_measured_on_those_and_the_end_on_the_test_images(make_quick_task, scripted):
    task = make_quick_task(epochs=3, val_split=0.25, tta="flip", swa_every=2)
    asked = scripted((0.9, 0.9), (0.8, 0.8), (0.7, 0.7), (0.5, 0.5), (0.4, 0.3))
    result = train(task)
    assert tuple(result.summary[name] for name in FIGURES) == (0.3, 0.5, 0.4, 0.3)
    assert [images is task.watched for _, images in asked] == [True, True, True, False, False]
    assert all(images is task.test for _, images in asked[3:])
    last, raw, final = (weights for weights, _ in asked[2:])
    assert torch.equal(raw, last) and torch.equal(final, result.model.head.weight) and not torch.equal(final, raw)
    assert [row["accuracy_val"] for row in result.history] == [0.9, 0.8, 0.7]


@pytest.mark.parametrize(
    ("figures", "final"), [((0.9, 0.8, 0.7), 0.7), ((0.9, 0.8, None), 0.8), ((0.9, None, None), 0.9),
                           ((0.9, None, 0.7), 0.7), ((0.9, 0.8, 0.0), 0.0)],
)  # fmt: skip
def test_the_figure_of_a_run_is_not_the_largest(figures, final):
    assert Accuracies(*figures).final == final


@pytest.fixture
def losses(monkeypatch):
    """The loss of every step, not those of the evaluations."""
    seen, plain = [], torch.nn.functional.cross_entropy

    def watched(*args, **settings):
        loss = plain(*args, **settings)
        if loss.requires_grad:
            seen.append(loss)
        return loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    return seen


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(make_quick_task, losses):
    history = train(make_quick_task(epochs=1.5)).history
    expected = [sum(loss.item() for loss in part) / len(part) for part in (losses[:8], losses[8:12])]
    assert [row["loss_train"] for row in history] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_infinite_ends_the_run(make_quick_task, monkeypatch):
    plain = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda *a, **k: plain(*a, **k) * float("inf"))
    with pytest.raises(Diverged, match="the loss is inf in epoch 1"):
        train(make_quick_task(epochs=0.01))
