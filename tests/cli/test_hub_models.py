"""The Hugging Face hub from Python: what goes up is the folder that `export` writes, what comes down is checked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, make_dataset
from made_runs import make_run
from torch import nn

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.inference import classifier as module
from fastcifar.runs.config_file import load_config, load_defaults
from fastcifar.runs.model_file import digest_of

hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.usefixtures("here", "tiny_network")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
SMALL = {"batch_size": 32, "device": "cpu"}
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "r", tmp_path / "x.npz", lr_peak=0.07)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that keeps each repository as a folder below `hub`."""

    def create_repo(self, repo_id, **rest):
        calls.append(("create", repo_id, rest["private"]))
        return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id, folder_path, commit_message, **rest):
        calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def download(name, allow_patterns, revision=None):
        calls.append(("download", name, revision))
        assert set(allow_patterns) == FILES
        return str(tmp_path / "hub" / name)

    calls = []
    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr("fastcifar.inference.hub.snapshot_download", download)
    return calls


def test_a_trained_model_goes_up_and_comes_down(tmp_path, server):
    result = fastcifar.train(QUICK, data=make_dataset(), epochs=1)  # writes no run folder
    url = result.model.push_to_hub("me/mine", private=True, commit_message="first")
    assert url.endswith("me/mine/commit/1") and server == [("create", "me/mine", True), ("upload", "me/mine", "first")]
    assert {path.name for path in (tmp_path / "hub/me/mine").iterdir()} == FILES
    card = hub.ModelCard.load(tmp_path / "hub/me/mine/README.md")
    assert card.data.model_name == "mine" and card.data.library_name == "fastcifar"
    assert card.data.eval_results[0].metric_value == pytest.approx(result.accuracy, abs=1e-6)
    assert "trained from Python" in card.text
    down = fastcifar.Classifier.from_pretrained("me/mine", revision="main")
    assert server[-1] == ("download", "me/mine", "main") and type(down) is fastcifar.Classifier
    assert torch.equal(down.logits(IMAGES), result.model.logits(IMAGES)) and down.classes == result.model.classes


def test_a_run_folder_gives_the_folder_of_the_command(run, tmp_path):
    assert cli.main(["export", str(run), "--format", "hub-folder"]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fastcifar.load(run).save_pretrained(tmp_path / "own")
    assert {path.name for path in (tmp_path / "own").iterdir()} == FILES
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "own" / name).read_bytes() == (run / "hub" / name).read_bytes()
    card = (tmp_path / "own/README.md").read_text()
    assert "# own\n" in card and "fastcifar train --config config.json --data PATH\n" in card
    assert load_defaults(tmp_path / "own/config.json").schedule == load_config(run / "config.json").schedule
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_came_down_is_saved_as_it_is(run, tmp_path):
    fastcifar.load(run).save_pretrained(tmp_path / "a")
    (tmp_path / "a/README.md").write_text("my own card")
    model = fastcifar.Classifier.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_network_from_python_comes_down_with_the_function_that_makes_it(tmp_path):
    def make():
        return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    result = fastcifar.train(network=make, data=make_dataset(), epochs=1, optimizer="sgd", out="own", **SMALL)
    for i, model in enumerate((result.model, fastcifar.load("own", network=make))):
        model.save_pretrained(tmp_path / f"hub{i}")
        down = fastcifar.Classifier.from_pretrained(tmp_path / f"hub{i}", network=make)
        assert torch.equal(down.logits(IMAGES), result.model.logits(IMAGES))
        card = (tmp_path / f"hub{i}/README.md").read_text()
        assert 'fastcifar.load(".", network=MAKES_IT)' in card and "fastcifar train" not in card
    with pytest.raises(ValueError, match="its network came from Python"):
        fastcifar.Classifier.from_pretrained(tmp_path / "hub0")


def test_a_model_without_a_run_and_changed_weights_are_refused(run, tmp_path, server):
    model = fastcifar.load(run)
    with torch.no_grad():
        next(model.network.parameters()).add_(1)
    alone = fastcifar.Classifier(nn.Identity(), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    result = fastcifar.train(QUICK, data=make_dataset(), epochs=1).model
    with torch.no_grad():
        next(result.network.parameters()).add_(1)
    (run / "copy.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    told = {
        "weights have changed": (model, result), "has no run": (alone,),
        "needs the run's other files": (fastcifar.load(run / "copy.safetensors"),),
    }  # fmt: skip
    for text, models in told.items():
        for each in models:
            with pytest.raises(ValueError, match=text):
                each.save_pretrained(tmp_path / "new")
            with pytest.raises(ValueError, match=text):
                each.push_to_hub("me/mine")
    assert not (tmp_path / "new").exists() and server == []  # no repository was made
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"has no accuracy in a summary\.json"):
        fastcifar.load(run).save_pretrained(tmp_path / "new")


def test_a_folder_with_files_stays_as_it_is(run):
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match="is there already"):
        fastcifar.load(run).save_pretrained(run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("content", [b"[1]", b"[" * 100_000, b"\xff", b'{"network": "x", "classes": []}'])
def test_a_strangers_config_is_not_parsed(run, tmp_path, content):
    """Nothing of it is needed for the model, which is that of the safetensors file."""
    fastcifar.load(run).save_pretrained(tmp_path / "a")
    (tmp_path / "a/config.json").write_bytes(content)
    model = fastcifar.Classifier.from_pretrained(tmp_path / "a")
    assert torch.equal(model.logits(IMAGES), fastcifar.load(run).logits(IMAGES))


def test_a_damaged_model_and_the_hubs_own_errors_are_one_line(run, tmp_path, server, monkeypatch):
    fastcifar.load(run).save_pretrained(tmp_path / "a")
    (tmp_path / "a/model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"a/model\.safetensors: not a whole fastcifar model"):
        fastcifar.Classifier.from_pretrained(tmp_path / "a")

    def refuses(*args, **rest):
        raise OSError("401 Client Error.\n\nRepository not found.\n")

    monkeypatch.setattr("fastcifar.inference.hub.snapshot_download", refuses)
    monkeypatch.setattr(hub.HfApi, "create_repo", refuses)
    reason = r"\(401 Client Error\. Repository not found\)$"
    with pytest.raises(ValueError, match=f"^me/mine: is no folder, and the hub does not give it {reason}"):
        fastcifar.Classifier.from_pretrained("me/mine")
    with pytest.raises(ValueError, match=f"^me/mine: the hub does not take it {reason}"):
        fastcifar.load(run).push_to_hub("me/mine")


def test_without_a_network_the_hub_is_named(tmp_path):
    with pytest.raises(ValueError, match="no-such-user/none: is no folder, and the hub does not give it"):
        fastcifar.Classifier.from_pretrained("no-such-user/none", cache_dir=tmp_path, local_files_only=True)


def test_without_the_package_one_line_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    model, told = fastcifar.load(run), r"pip install huggingface_hub$"
    for call in (lambda: model.save_pretrained("a"), lambda: model.push_to_hub("a/b"),
                 lambda: fastcifar.Classifier.from_pretrained("a/b")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            call()


def test_a_run_does_not_import_it(tmp_path):
    code = f"""
import sys, fastcifar
result = fastcifar.train(data="synthetic", subset=100, batch_size=20, epochs=1, scale="small", device="cpu", out="r",
                         shape={json.dumps({"stem": 24, "stages": [{"width": 8}, {"width": 8}]})})
fastcifar.load("r")
assert "huggingface_hub" not in sys.modules
"""
    places = {"PYTHONPATH": str(Path(fastcifar.__file__).parents[1]), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=places)
    assert done.returncode == 0, done.stderr[-2000:]


def test_equal_weights_have_one_digest_and_others_another():
    one, other = (nn.Linear(3, 2, bias=False) for _ in range(2))
    other.weight.data.copy_(one.weight.data)
    assert digest_of(one) == digest_of(other)
    other.weight.data[0, 0] += 1e-6
    assert digest_of(one) != digest_of(other) != digest_of(nn.Sequential(other))
