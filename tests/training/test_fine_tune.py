"""Fine-tuning: the weights come from the file, frozen ones stay, and a run resumes bit for bit without the file."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import run_with_cuts, same, weights
from conftest import QUICK, make_dataset, task_of, train_in_folder
from safetensors.torch import load_file

from fastcifar.config.recipes import swa30
from fastcifar.config.settings import with_settings
from fastcifar.config.shapes import SHAPES, Stage
from fastcifar.data import synthetic
from fastcifar.data.dataset import Dataset
from fastcifar.models.networks import make_model
from fastcifar.observers.run_files import normalization_facts
from fastcifar.runs.model_file import write_model
from fastcifar.training.loop import train
from fastcifar.training.start import initial_state
from fastcifar.training.stopwatch import Stopwatch


def of_classes(whole: Dataset, labels: range, n_train: int = 10_000) -> Dataset:
    """The images of some classes, which become 0, 1, ..."""
    train_rows = np.flatnonzero(np.isin(whole.y_train, labels))[:n_train]
    test_rows = np.flatnonzero(np.isin(whole.y_test, labels))
    return replace(
        whole, classes=tuple(whole.classes[i] for i in labels), digest=f"{labels} of {whole.digest}",
        x_train=whole.x_train[train_rows], y_train=whole.y_train[train_rows] - labels.start,
        x_test=whole.x_test[test_rows], y_test=whole.y_test[test_rows] - labels.start,
    )  # fmt: skip


OTHER = of_classes(make_dataset(seed=4), range(3, 7))
"""Four classes, where the trained model knows ten."""


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(make_quick_task, trained_once, tmp_path) -> Path:
    """Folder of a finished run, this test's own."""
    if not (trained_once / "summary.json").exists():
        train_in_folder(make_quick_task(epochs=1, swa_start=None), trained_once)
    return shutil.copytree(trained_once, tmp_path / "trained")


def first_weights(task) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in initial_state(task, Stopwatch()).model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_all_but_the_head_comes_from_the_file(make_quick_task, trained):
    saved = load_file(trained / "model.safetensors")
    ours = first_weights(make_quick_task(data_set=OTHER, init=str(trained)))
    assert changed({k: v for k, v in ours.items() if k != "head.weight"}, saved) == set()
    fresh = first_weights(make_quick_task(data_set=OTHER))
    assert torch.equal(ours["head.weight"], fresh["head.weight"]) and ours["head.weight"].shape == (4, 8)
    assert not torch.equal(ours["stem.weight"], fresh["stem.weight"])  # the filters of the file, not of the images
    path = trained / "model.safetensors"
    assert same(ours, first_weights(make_quick_task(data_set=OTHER, init=str(path))))


def test_a_head_of_as_many_classes_comes_along(make_quick_task, trained):
    ours = first_weights(make_quick_task(data_set=make_dataset(seed=4), init=str(trained)))
    assert same(ours, load_file(trained / "model.safetensors"))


@pytest.mark.parametrize("width", [8, 16])
def test_a_file_of_other_layers_is_refused(make_quick_task, trained, width):
    """Also where all weights of this run are among those of the file."""
    shape = replace(SHAPES["small"], stages=(*SHAPES["small"].stages[:-1], Stage(width=width)))
    with pytest.raises(ValueError, match=r"holds a model of .*, but this run has .* shape .*give the flags of"):
        first_weights(make_quick_task(data_set=OTHER, init=str(trained), shape=shape))


def test_layers_are_compared_and_not_what_names_them(make_quick_task, trained, tmp_path):
    named = SHAPES["small"]
    assert same(
        first_weights(make_quick_task(init=str(trained), shape=named)), load_file(trained / "model.safetensors")
    )
    own = replace(named, stages=(*named.stages[:-1], Stage(width=12)))
    train_in_folder(make_quick_task(epochs=1, swa_start=None, shape=own), tmp_path / "own")
    ours = first_weights(make_quick_task(init=str(tmp_path / "own"), shape=own))
    assert same(ours, load_file(tmp_path / "own/model.safetensors"))


def test_the_draws_of_the_run_are_its_own(make_quick_task, tmp_path):
    task = make_quick_task(network="shakeshake26")
    model = make_model(task.config.model, 10, seed=1)
    model.noise.step.fill_(77)
    write_model(tmp_path / "m.safetensors", model, normalization_facts(task))
    ours = first_weights(make_quick_task(network="shakeshake26", init=str(tmp_path / "m.safetensors")))
    assert changed(ours, model.state_dict()) == {"noise.step"} and ours["noise.step"] == 0


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("freeze", ["none", "stem", "all-but-head"])
def test_frozen_weights_stay_and_the_others_change(make_quick_task, trained, freeze, optimizer):
    settings = {"init": str(trained), "freeze": freeze, "epochs": 2, "optimizer": optimizer, "lr_peak": 0.1}
    before = first_weights(make_quick_task(data_set=OTHER, **settings))
    model = train(make_quick_task(data_set=OTHER, **settings)).model
    names = {name for name, _ in model.named_parameters()}
    fixed = {name for name in names if name == "stem.weight" or name.endswith("norm1.weight") or "norm2.weight" in name
             or "norm3.weight" in name}  # fmt: skip  # never trained
    frozen = {"none": fixed, "stem": fixed | {"stem.bias"}, "all-but-head": names - {"head.weight"}}[freeze]
    assert changed(before, model.state_dict()) & names == names - frozen


@pytest.mark.parametrize("network", ["resnet18", "shakeshake26", "shakedrop"])
def test_every_network_can_be_frozen(make_quick_task, network):
    settings = {"network": network, "epochs": 0.5, "freeze": "all-but-head"}
    before = first_weights(make_quick_task(**settings))
    model = train(make_quick_task(**settings)).model
    names = {name for name, _ in model.named_parameters()}
    assert changed(before, model.state_dict()) & names == {"head.weight", "head.bias"}


def test_frozen_weights_cost_no_backward_pass(make_quick_task):
    whole, head = make_quick_task(), make_quick_task(freeze="all-but-head")
    assert head.flop_per_image[32] < 0.4 * whole.flop_per_image[32]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "freeze": "stem"}, {"freeze": "all-but-head"}], ids=str)
def test_a_fine_tuned_run_resumes_without_the_file(make_quick_task, deterministic, trained, tmp_path, settings):
    def make(**more):
        if "resume" in more:
            shutil.rmtree(trained, ignore_errors=True)
        return make_quick_task(data_set=OTHER, init=str(trained), deterministic=True, **settings, **more)

    whole = run_with_cuts(make, tmp_path / "a")
    again = run_with_cuts(make, tmp_path / "b", (2, 7))
    assert not trained.exists() and same(weights(again), weights(whole))
    assert again.summary["accuracy"] == whole.summary["accuracy"]


@pytest.mark.parametrize("other", [{"init": "elsewhere"}, {"freeze": "stem"}], ids=str)
def test_what_is_fine_tuned_may_not_change_within_a_run(make_quick_task, trained, tmp_path, other):
    run_with_cuts(make_quick_task, tmp_path / "r", init=str(trained), epochs=1)
    settings = {"init": str(trained), "epochs": 1, "resume": str(tmp_path / "r")} | other
    with pytest.raises(ValueError, match="may not change within a run"):
        run_with_cuts(make_quick_task, tmp_path / "r", **settings)


@pytest.mark.parametrize(
    "setting", [{"network": "resnet18"}, {"norm": "gn-ws"}, {"activation": "silu"}, {"scale": "full"}], ids=str
)
def test_another_network_is_refused_by_naming_both(make_quick_task, trained, setting):
    with pytest.raises(ValueError) as error:
        first_weights(make_quick_task(init=str(trained), **setting))
    message, ((name, value),) = str(error.value), setting.items()
    assert "holds a model of network resnet9, scale small, norm bn, activation relu, but" in message
    assert f"{name} {value}" in message and "\n" not in message


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04cos\nsystem\n.", b"\xff" * 100], ids=str)
def test_a_wrong_file_ends_in_one_line(here, call, base, tmp_path, content):
    where = tmp_path / "m.safetensors"
    if content is not None:
        where.write_bytes(content)
    code, _, err = call(*base, "--init", str(where), "--out", str(tmp_path / "r"))
    errors = [line for line in err if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and str(where) in errors[0] and "Traceback" not in "".join(err)


@pytest.mark.slow  # 20 seconds
def test_fine_tuning_beats_training_from_scratch_on_few_images(tmp_path):
    """From five classes of the synthetic set, with 1,500 images, to the other five, with 250."""
    *arrays, classes = synthetic.make(3000, 500)
    whole = Dataset("synthetic", classes, *arrays, synthetic.MEAN, synthetic.STD, "whole")
    quick = {"epochs": 3, "batch_size": 50, "low_res_px": 16, "low_res_until": 0.75, "swa_start": None, "tta": "none",
             "eval_every": 100, "bias_lr_scale": 5.5, "head_lr_scale": 17.5}  # fmt: skip  # for small batches
    config = with_settings(replace(swa30, machine=QUICK.machine), scale="small", **quick)
    first = task_of(config, of_classes(whole, range(5)))
    write_model(tmp_path / "m.safetensors", train(first).model, normalization_facts(first))

    def accuracy(**settings):
        changed = with_settings(config, epochs=8, **settings)
        few = of_classes(whole, range(5, 10), n_train=250)
        return train(task_of(changed, few)).summary["accuracy"]

    assert first.num_train == 1500
    assert accuracy(init=str(tmp_path / "m.safetensors")) > accuracy() + 0.05  # 39.2% against 27.2% on one seed
