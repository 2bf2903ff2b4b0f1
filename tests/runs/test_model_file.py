"""model.safetensors: what is read back are the weights that were written, and weights that lie are refused."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from fastcifar.cli import main as cli
from fastcifar.config.config import Model
from fastcifar.models.networks import make_model
from fastcifar.runs import model_file
from fastcifar.runs.model_file import load_model, load_swag, write_model

pytestmark = pytest.mark.usefixtures("tiny_network")

FACTS = {"classes": ["cat", "dog"], "mean": [0.5] * 3, "std": [0.25] * 3, "network": "resnet9", "scale": "small",
         "norm": "bn", "activation": "relu"}  # fmt: skip


@pytest.fixture
def model():
    return make_model(Model(scale="small"), 2, seed=0)


@pytest.fixture
def path(tmp_path, model):
    write_model(tmp_path / "model.safetensors", model, FACTS)
    return tmp_path / "model.safetensors"


def rewrite(path, change):
    """The file with its tensors changed by `change(tensors)`."""
    with safe_open(path, framework="pt") as f:
        head, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no dict)
    change(tensors)
    path.write_bytes(save(tensors, head))


def test_every_weight_is_read_back_bit_for_bit(path, model):
    found, facts = load_model(path)
    assert facts == FACTS and not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(found.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("swag", [False, True])
def test_a_whole_file_is_not_called_damaged_when_memory_runs_out(path, monkeypatch, swag):
    """Torch's own error: nothing has so much memory."""
    monkeypatch.setattr(model_file, "make_model", lambda *args, **settings: torch.empty(1 << 60))
    if swag:
        path = path.rename(path.with_name("swag.safetensors"))
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        load_swag(path.parent) if swag else load_model(path)


def test_running_out_of_memory_while_a_model_is_read_is_told(path, tmp_path, monkeypatch, capfd):
    """One line, exit code 2, no word on the file."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(model_file, "make_model", lambda *args, **settings: torch.empty(1 << 60))
    assert cli.main(["predict", str(path), str(tmp_path / "a.png")]) == 2
    assert capfd.readouterr() == ("", "error: out of memory; close other programs or use fewer images\n")


LIES = {
    "not a number": (lambda t: t["head.weight"][0].fill_(float("nan")), "weights.head.weight is not finite"),
    "infinite": (lambda t: t["stages.0.conv1.weight"].view(-1)[-1:].fill_(float("inf")), "conv1.weight is not finite"),
    "an infinite statistic": (
        lambda t: t["stages.0.norm1.running_var"][0].fill_(float("inf")),
        "running_var is not fi",
    ),
    "half precision": (lambda t: t.update({"head.weight": t["head.weight"].half()}), "float16 [2, 8] instead of"),
    "another shape": (lambda t: t.update({"head.weight": torch.zeros(2, 9)}), "float32 [2, 9] instead of float32"),
    "one too few": (lambda t: t.pop("stem.bias"), "has other entries than this run: {'stem.bias'}"),
    "one too many": (lambda t: t.update({"more": torch.zeros(1)}), "has other entries than this run: {'more'}"),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_lie_are_refused(path, lie):
    change, told = LIES[lie]
    rewrite(path, change)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole fastcifar model") as refusal:
        load_model(path)
    assert told in str(refusal.value)


def test_no_network_is_made_for_more_classes_than_the_head_has(path, model, monkeypatch):
    """A list of a million names would ask for a head of a million outputs."""
    write_model(path, model, {**FACTS, "classes": ["cat", "dog", "frog"]})
    monkeypatch.setattr(model_file, "make_model", lambda *_: pytest.fail("a network was made"))
    with pytest.raises(ValueError, match="not as many classes as outputs"):
        load_model(path)
