"""`fastcifar export`: files that other programs load, with the outputs of the model."""

import json
import sys

import numpy as np
import pytest
import torch
from made_runs import NAMES, assert_refused, make_run
from PIL import Image

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.config.config import Model
from fastcifar.inference import export
from fastcifar.inference.classifier import Classifier
from fastcifar.models.networks import make_model

pytestmark = pytest.mark.usefixtures("here")

FORMS = ["torch-export", "onnx"]


def need(form):
    """Skips, by name, where an optional package is missing."""
    for package in export.ONNX_PACKAGES if form == "onnx" else ():
        pytest.importorskip(package)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "r", tmp_path / "x.npz")


def loaded(path):
    """The exported file as a function of uint8 images."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda images: module(torch.from_numpy(images)).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.type, inputs.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    assert isinstance(inputs.shape[0], str) and (outputs.name, outputs.shape[1]) == ("logits", 10)
    return lambda images: session.run(None, {"images": images})[0]


@pytest.mark.parametrize("form", FORMS)
def test_the_file_gives_the_outputs_of_the_model_and_says_how_to_use_it(run, form, capfd):
    need(form)
    before = {p: p.read_bytes() for p in run.iterdir()}
    assert cli.main(["export", str(run), "--format", form]) == 0
    out, err = capfd.readouterr()
    path = run / ("model" + export.SUFFIXES[form])
    figure = "test accuracy 58.00%, with one view of each image; the run's 60.00% takes up to 6 views"
    assert out.splitlines()[2:] == [figure]
    assert out.startswith(f"{path}: images uint8 [N, 32, 32, 3]") and not err
    function, model = loaded(path), fastcifar.load(run)
    for count in (1, 2, 7):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        assert np.abs(function(images) - model.logits(images).numpy()).max() < 1e-4
    assert {p: p.read_bytes() for p in run.iterdir() if p != path} == before
    assert_says_how_to_use_it(path, model)


def assert_says_how_to_use_it(path, model):
    """Its own texts are enough to name the class of an image that is not of 32 pixels."""
    if path.suffix == ".onnx":
        import onnxruntime

        told = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
        )
    else:
        told = dict.fromkeys(("classes", "mean", "std", "images", "resize"), "")
        torch.export.load(path, extra_files=told)
    assert json.loads(told["classes"]) == list(model.classes) == list(NAMES)
    assert json.loads(told["mean"]) == [0.5] * 3 and json.loads(told["std"]) == [0.25] * 3
    assert "32x32" in told["resize"] and "uint8" in told["images"]
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    told_filter = Image.Resampling[told["resize"].rpartition(".")[2]]
    small = np.array(Image.fromarray(image).resize((32, 32), told_filter))
    assert np.abs(loaded(path)(small[None]) - model.logits(image).numpy()).max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("network", "norm"), [("resnet9", "gn-ws"), ("resnet18", "bn")])
def test_every_network_can_be_exported(tmp_path, form, network, norm):
    need(form)
    net = make_model(Model(network=network, scale="small", norm=norm), 3, seed=0)
    classifier = Classifier(net, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    assert export.export(classifier, form, tmp_path / "m") < 1e-4 and (tmp_path / "m").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "required"),
        (("r",), "--format"),
        (("r", "--format", "tflite"), "tflite"),
        (("nowhere", "--format", "torch-export"), "nowhere: no model.safetensors"),
        (("r", "--format", "torch-export", "--out", "r"), "is a folder or the model itself"),
        (("r", "--format", "torch-export", "--out", "r/model.safetensors"), "is a folder or the model itself"),
        (("r", "--format", "torch-export", "--out", "r/config.json/m.pt2"), "r/config.json: File exists"),
    ],
)
def test_bad_input_is_told_in_one_line(run, capfd, words, told):
    before = {p: p.read_bytes() for p in run.iterdir()}
    assert_refused(capfd, told, "export", *words)
    assert {p: p.read_bytes() for p in run.iterdir()} == before


def test_a_missing_package_is_told_with_the_command_that_brings_it(run, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(capfd, "pip install onnx onnxscript onnxruntime", "export", run, "--format", "onnx")
    assert not (run / "model.onnx").exists()


def test_a_file_with_other_outputs_is_not_kept(run, capfd, monkeypatch):
    (run / "model.pt2").write_bytes(b"old")
    load = export._load_torch_export
    monkeypatch.setattr(export, "_load_torch_export", lambda path: lambda x: load(path)(x) + 2e-4)
    assert_refused(capfd, "differs from the model by 0.0002", "export", run, "--format", "torch-export")
    monkeypatch.setattr(export, "_load_torch_export", lambda path: lambda x: load(path)(x)[:1])
    assert_refused(capfd, "its output is [1, 10] for 64 images", "export", run, "--format", "torch-export")
    assert (run / "model.pt2").read_bytes() == b"old"
