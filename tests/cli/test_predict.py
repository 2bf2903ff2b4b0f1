"""`fastcifar predict`: names images by a run's model; a model file from a hostile hand ends in one line."""

import json

import pytest
import torch
from hypothesis import given
from mutation import damaged, edits, many
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from fastcifar.cli import main as cli
from fastcifar.cli.predict import read_image
from fastcifar.config.config import Model
from fastcifar.inference.classifier import load
from fastcifar.models.networks import make_model
from fastcifar.runs.model_file import load_model, write_model

NAMES = ["airplane", "cat", "dog"]
FACTS = {"classes": NAMES, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "dataset": "toy", "network": "resnet9",
         "norm": "bn", "activation": "gelu", "scale": "small", "accuracy": 0.9}  # fmt: skip
NETWORK = Model(scale="small", activation="gelu")


@pytest.fixture
def model_file(tmp_path, tiny_network):
    """model.safetensors of a run, with a network of a few channels."""
    write_model(tmp_path / "model.safetensors", make_model(NETWORK, 3, seed=0), FACTS)
    return tmp_path / "model.safetensors"


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (40, 40), (10, 200, 30)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_an_image_gets_the_classes_of_the_run_best_first(model_file, image, capsys):
    assert cli.main(["predict", str(image), "--run", str(model_file.parent)]) == 0
    path, _, told = capsys.readouterr().out.strip().partition(": ")
    shares = [part.rsplit(" ", 1) for part in told.split(", ")]
    assert path == str(image) and {name for name, _ in shares} == set(NAMES)
    percents = [float(share.rstrip("%")) for _, share in shares]
    assert percents == sorted(percents, reverse=True) and sum(percents) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize(("flags", "views", "told"), [([], 2, "2 views of each"), (["--no-views"], 1, "one view")])
def test_it_says_how_many_views_it_takes(model_file, image, capsys, flags, views, told):
    assert cli.main(["predict", str(model_file), str(image), *flags]) == 0
    assert capsys.readouterr().err.startswith(told)
    assert cli.main(["predict", str(model_file), str(image), "--json", *flags]) == 0
    row, model = json.loads(capsys.readouterr().out), load(model_file)
    probability = model.logits(read_image(image)[None].copy(), views=views == 2).softmax(1).max().item()
    assert row["views"] == views and row["probability"] == pytest.approx(probability, abs=1e-6)


def test_the_network_is_the_one_that_was_written(model_file):
    model, facts = load_model(model_file)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert facts == FACTS and torch.equal(model(x), make_model(NETWORK, 3, seed=0).eval()(x))


def rewrite(path, facts=None, **tensors):
    """The file with some facts (given as texts of JSON) or weights changed."""
    with safe_open(path, framework="pt") as f:
        head, weights = dict(f.metadata()), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    path.write_bytes(save(weights | tensors, head | (facts or {})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", '"abc"'), ("classes", "3"), ("classes", "{}"), ("classes", '["a", "b"]'),
        ("classes", '["a", "a", "b"]'), ("classes", '["a", 1, "b"]'), ("classes", '["a\\u001b[2J", "b", "c"]'),
        ("classes", "[" * 100_000),
        ("classes", json.dumps([str(i) for i in range(100_000)])), ("mean", "[0, 0]"), ("mean", '["a", 0, 0]'),
        ("mean", "null"), ("mean", "[NaN, 0, 0]"), ("std", "[0, 0.1, 0.1]"), ("std", "[1e999, 1, 1]"), ("std", "{}"),
        ("network", '"resnet1000"'), ("network", "[]"), ("network", '"resnet18"'), ("scale", '"auto"'), ("scale", "{}"),
        ("scale", '"full"'), ("norm", "1"), ("activation", '"exp"'), ("format", "999"), ("std", "\\x00"), ("std", ""),
    ],
)  # fmt: skip
def test_facts_that_lie(model_file, image, capsys, name, value):
    rewrite(model_file, {name: value})
    assert cli.main(["predict", str(image), "--run", str(model_file)]) == 2
    out, err = capsys.readouterr()
    assert (
        not out and len(err.splitlines()) == 1 and "not a whole fastcifar model" in err and err.isprintable() is False
    )
    assert "\x1b" not in err and len(err) < 1000


@pytest.mark.parametrize("weight", [torch.full((3, 8), float("nan")), torch.zeros(3, 9), torch.zeros(3, 8).half()])
def test_weights_that_lie(model_file, image, capsys, weight):
    rewrite(model_file, **{"head.weight": weight})
    assert cli.main(["predict", str(image), "--run", str(model_file)]) == 2
    assert "not a whole fastcifar model" in capsys.readouterr().err


def test_damaged_models_are_read_or_refused(model_file, image, capsys):
    whole = model_file.read_bytes()

    @many
    @given(edits=edits)
    def one(edits):
        model_file.write_bytes(damaged(whole, edits))
        code = cli.main(["predict", str(image), "--run", str(model_file)])
        out, err = capsys.readouterr()
        assert (code, len(out.splitlines()), len(err.splitlines())) in ((0, 1, 0), (2, 0, 1)), err

    one()
