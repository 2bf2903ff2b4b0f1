"""Training from Python: the same run as by the command, on any arrays, with hooks, and one-line errors."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK, make_dataset

import fastcifar
from fastcifar.config.recipes import RECIPES
from fastcifar.config.schedules import Cosine, OneCycle
from fastcifar.config.settings import with_optimizer
from fastcifar.data.pixels import to_rgb_32

pytestmark = pytest.mark.usefixtures("tiny_network")
SMALL: dict[str, Any] = {"device": "cpu", "precision": "fp32", "scale": "small", "epochs": 2, "batch_size": 32}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fastcifar; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'tyro')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(hasattr(fastcifar, name) for name in fastcifar.__all__)
    assert dir(fastcifar) == sorted([*fastcifar.__all__, "__version__"])
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = fastcifar.no_such_name


def test_a_training_writes_nothing_unless_asked(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    result = fastcifar.train("swa30", data=make_dataset(), **SMALL)
    assert (result.folder, list(tmp_path.iterdir()), capfd.readouterr()) == (None, [], ("", ""))
    assert 0 <= result.accuracy <= 1 and [row["epoch"] for row in result.history] == [1, 2]
    assert result.summary["recipe"] == "swa30" and result.summary["epochs"] == 2


def test_a_run_folder_is_that_of_the_command(tmp_path):
    result = fastcifar.train(QUICK, data=make_dataset(), epochs=1, out=tmp_path / "r")
    names = {"config.json", "metrics.jsonl", "summary.json", "model.safetensors", "curves.png", "checkpoint.pt"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == names and result.folder == tmp_path / "r"
    loaded = fastcifar.load(tmp_path / "r")
    images = make_dataset().x_test
    assert torch.equal(loaded.logits(images), result.model.logits(images))
    with pytest.raises(ValueError, match="holds a run already"):
        fastcifar.train(QUICK, data=make_dataset(), epochs=1, out=tmp_path / "r")


def test_observers_are_told_of_steps_and_of_epochs_with_their_rows():
    class Diary(fastcifar.Observer):
        def on_step(self, run: Any) -> None:
            steps.append(run.step)

        def on_epoch(self, run: Any, row: dict[str, Any]) -> None:
            rows.append(row)

    steps: list[int] = []
    rows: list[dict[str, Any]] = []
    result = fastcifar.train(QUICK, data=make_dataset(), epochs=2, observers=[Diary()])
    assert steps == list(range(1, 17)) and rows == result.history


@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 3), ((24, 24, 1), 2), ((64, 48, 3), 12), ((32, 32, 3), 2)])
def test_fit_takes_any_small_images(shape, classes):
    random = np.random.default_rng(0)
    y = np.arange(120) % classes
    x = random.integers(0, 60, (120, *shape), dtype=np.uint8)
    x += (y * (190 // classes)).astype(np.uint8).reshape(-1, *[1] * len(shape))  # brightness tells the class
    result = fastcifar.fit(x[:96], y[:96], test=(x[96:], y[96:]), **SMALL)
    names, probability = result.model.predict(x[96:])
    assert set(names) <= {str(i) for i in range(classes)} and probability.shape == (24,)
    assert fastcifar.evaluate(result.model, (x[96:], y[96:]))["accuracy"] == pytest.approx(
        np.mean([int(name) for name in names] == y[96:])
    )


def test_evaluate_gives_the_accuracy_of_the_run():
    dataset = make_dataset()
    result = fastcifar.train(QUICK, data=dataset, epochs=2, tta="none")
    measured = fastcifar.evaluate(result.model, dataset, views=False)
    assert measured["accuracy"] == pytest.approx(result.accuracy, abs=1e-6) and measured["loss"] > 0


def test_evaluate_refuses_other_classes_shares_and_formats(tmp_path):
    dataset = make_dataset()
    model = fastcifar.train(QUICK, data=dataset, epochs=1).model
    turned = replace(dataset, classes=dataset.classes[::-1])
    with pytest.raises(ValueError, match=r"has the classes .*; the model knows"):
        fastcifar.evaluate(model, turned)
    with pytest.raises(ValueError, match="share is 0; it must be above 0"):
        fastcifar.evaluate(model, dataset, share=0)
    with pytest.raises(ValueError, match="format is 'torchscript'; choose from onnx, torch-export"):
        fastcifar.export(model, "torchscript", tmp_path / "x")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("given", [Cosine(peak=0.05), OneCycle(peak=0.05, momentum_max=0.9, momentum_min=0.8)])
def test_another_optimizer_leaves_the_rates_of_a_schedule_that_is_given(given):
    settings = {"optimizer": "sgd", "network": "resnet9", "epochs": 1}
    result = fastcifar.train("swa30", data=make_dataset(), scale="small", precision="fp32", schedule=given, **settings)
    assert result.summary["config"]["schedule"]["peak"] == 0.05
    assert result.summary["config"]["tail"]["lr"] == with_optimizer(RECIPES["swa30"], "sgd").tail.lr


def test_one_class_is_refused():
    images = np.zeros((20, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="has one class, '0'; expected two at least"):
        fastcifar.fit(images, np.zeros(20, int), 0.2)


def test_what_would_cut_a_data_set_that_is_given_is_refused():
    for setting in ({"subset": 100}, {"test_split": 0.3}):
        with pytest.raises(ValueError, match="has no effect on a Dataset or on arrays: cut them before"):
            fastcifar.train(QUICK, data=make_dataset(), **setting)


def test_a_run_is_resumed_with_the_arguments_that_began_it(tmp_path):
    given = {"data": make_dataset(), "epochs": 2, "swa_start": 0.5}
    begun = fastcifar.train(QUICK, out=tmp_path / "r", **given)
    with pytest.raises(ValueError, match=r"this call has other settings than the run \(epochs: 2.* -> 3"):
        fastcifar.train(QUICK, resume=begun.folder, **{**given, "epochs": 3})
    longer = fastcifar.train(QUICK, resume=begun.folder, extend_epochs=3, **given)
    again = fastcifar.train(QUICK, resume=begun.folder, **given)
    assert longer.summary["epochs"] == again.summary["epochs"] == 3 and longer.accuracy == again.accuracy


def test_evaluate_splits_a_set_without_test_images(tmp_path):
    data = make_dataset()
    np.savez(tmp_path / "x.npz", x_train=data.x_train, y_train=data.y_train, classes=np.array(data.classes))
    model = fastcifar.train(QUICK, data=tmp_path / "x.npz", test_split=0.25, epochs=1).model
    assert fastcifar.evaluate(model, tmp_path / "x.npz", test_split=0.25)["accuracy"] >= 0
    with pytest.raises(ValueError, match="test has 0 images"):
        fastcifar.evaluate(model, tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("images", "labels", "test", "told"),
    [
        (np.zeros((8, 32, 32, 3), np.uint8), [0, 1] * 4, None, "test is a NoneType; give .images, labels., or the"),
        (
            [np.zeros((32, 32, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)],
            [0, 1],
            0.5,
            "all images must have one size",
        ),
        (object(), [0, 1], 0.5, "a object is no array: give images as uint8"),
        (np.zeros((9, 32, 32, 3), np.uint8), [1, 2, 3] * 3, 0.3, "class '0' has no training images; add some; labels"),
    ],
)
def test_arrays_that_are_none_are_told(images, labels, test, told):
    with pytest.raises(ValueError, match=told):
        fastcifar.fit(images, labels, test)


def test_a_resumed_folder_that_is_not_there_is_told():
    with pytest.raises(ValueError, match="--resume auto: no such folder"):
        fastcifar.train(QUICK, data=make_dataset(), resume="auto")


def test_normalisation_is_part_of_the_model():
    dataset = make_dataset()
    model = fastcifar.train(QUICK, data=dataset, epochs=1).model
    x = (torch.from_numpy(dataset.x_test).float() / 255 - torch.tensor(dataset.mean)) / torch.tensor(dataset.std)
    with torch.no_grad():
        expected = model.network(x.permute(0, 3, 1, 2))
    assert torch.allclose(model.logits(dataset.x_test), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"recipe": "nope"}, "recipe 'nope' is unknown; known: swa30"),
        ({"lr_peek": 0.1}, "lr_peek is no setting; did you mean lr_peak?"),
        ({"epochs": -1}, "epochs is -1; it must be above 0"),
        ({"gamma": 0.5}, "--gamma has no effect with schedule onecycle"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"data": "/no/such/file"}, "/no/such/file"),
        ({"runs": 3}, "runs is for the command line"),
        ({"dry_run": True}, "dry_run is for the command line"),
        ({"extend_epochs": 3}, "add --resume RUN_DIR"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, told):
    with pytest.raises(ValueError) as error:
        fastcifar.train(**{"data": make_dataset(), **arguments})
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [(np.zeros(4), np.zeros(4)), {"x": 1}, [1], 3, b"x", [], torch.utils.data.Dataset()])
def test_data_that_is_neither_a_name_nor_a_data_set_is_not_replaced_by_another_one(data):
    with pytest.raises(TypeError, match=r"data is a \w+; give a name, a path or a Dataset, or arrays to fastcifar"):
        fastcifar.train(QUICK, data=data)


@pytest.mark.parametrize("data", [{"x": 1}, [np.zeros(4), np.zeros(4)], 3, None])
def test_evaluate_takes_no_other_data_either(data):
    model = fastcifar.train(QUICK, data=make_dataset(), epochs=0.5).model
    with pytest.raises(TypeError, match="give a name, a path or a Dataset"):
        fastcifar.evaluate(model, data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"images": np.zeros((4, 32, 32, 3), int)},
            "x_train: int64 [4, 32, 32, 3]; expected uint8, or floats in [0, 1]",
        ),
        ({"images": np.full((4, 32, 32, 3), 2.5)}, "x_train: float64 from 2.5 to 2.5; expected uint8, or floats in"),
        ({"images": np.full((4, 32, 32, 3), np.nan)}, "x_train: float64 from nan to nan; expected uint8, or floats"),
        ({"images": np.zeros((4, 16, 16), np.uint8)}, "x_train: 16x16 pixels; expected 24 to 96 in width and height"),
        ({"images": np.zeros((4, 32, 32, 2), np.uint8)}, "with 1 or 3 channels"),
        ({"labels": np.zeros(4)}, "y_train is float64 [4]; expected integers [N] or [N, 1]"),
        ({"labels": np.zeros(3, int)}, "4 images and 3 labels"),
        ({"labels": np.array([0, 0, 0, 9])}, "a label in y_train is 9"),
        ({"labels": np.array([0, 0, 0, -1])}, "-1"),
        ({"classes": ["a", "a"]}, "class names"),
    ],
)
def test_wrong_arrays_are_told_in_one_line(change, told):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError) as error:
        fastcifar.fit(**{"images": images, "labels": labels, "test": (images, labels), **change})
    assert told in str(error.value) and "\n" not in str(error.value)


def test_grey_images_get_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    assert np.array_equal(to_rgb_32(grey), np.stack([grey] * 3, axis=-1))


def test_an_image_without_a_batch_axis_is_a_batch_of_one():
    model = fastcifar.train(QUICK, data=make_dataset(), epochs=1).model
    batch = make_dataset().x_test[1:2]
    for images, alone in ((batch, batch[0]), (batch[..., 0], batch[0, ..., 0]), (batch[..., :1], batch[0, ..., :1])):
        assert torch.equal(model.logits(alone), model.logits(images)) and model.logits(alone).shape == (1, 10)
        assert torch.equal(model.logits(torch.from_numpy(alone)), model.logits(images))
        assert model.predict(alone)[0] == model.predict(images)[0]
    assert not torch.equal(model.logits(batch), model.logits(batch[..., 0]))
    with pytest.raises(ValueError, match="3x32 pixels"):
        model.logits(np.zeros((2, 32, 3, 3), np.uint8))


def test_probabilities_of_all_classes():
    """They are those of which `predict` names the largest, with the same views."""
    model, images = fastcifar.train(QUICK, data=make_dataset(), epochs=1).model, make_dataset().x_test
    p = model.predict_proba(images)
    names, largest = model.predict(images)
    assert p.shape == (80, 10) and torch.allclose(p.sum(1), torch.ones(80), atol=1e-5)
    assert [model.classes[i] for i in p.argmax(1)] == names and torch.equal(p.max(1).values, largest)
    plain, mirrored = model.logits(images), model.logits(images[:, :, ::-1].copy())
    assert torch.allclose(p, ((plain + mirrored) / 2).softmax(1), atol=1e-5) and not torch.allclose(p, plain.softmax(1))
    assert torch.equal(model.predict_proba(images, views=False), plain.softmax(1))
    with pytest.raises(ValueError, match="views is 'shift'; choose from none, flip, flip-shift"):
        model.predict_proba(images, views="shift")


def test_a_label_that_the_model_does_not_know_is_told():
    model = fastcifar.train(QUICK, data=make_dataset(), epochs=0.5).model
    with pytest.raises(ValueError, match=r"a label is 10; the model knows 0\.\.9"):
        fastcifar.evaluate(model, (make_dataset().x_test[:1], np.array([10])))
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        fastcifar.load("nowhere")
