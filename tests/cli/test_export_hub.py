"""`fastcifar export --format hub-folder`: a card that the hub's own library reads, and a model that loads."""

import json
import re
import shlex

import numpy as np
import pytest
from huggingface_hub import ModelCard
from made_runs import NAMES, assert_refused, make_run

import fastcifar
from fastcifar.cli import export as command
from fastcifar.cli import main as cli
from fastcifar.cli.flags import parse, parse_config
from fastcifar.config.recipes import RECIPES
from fastcifar.config.settings import method_differences
from fastcifar.inference import classifier, hub_folder
from fastcifar.runs import record
from fastcifar.runs.config_file import load_config
from fastcifar.runs.model_file import write_model

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "r", tmp_path / "x.npz", lr_peak=0.07)


def export(run):
    assert cli.main(["export", str(run), "--format", "hub-folder"]) == 0
    return run / "hub"


def blocks(card):
    """The two blocks of code of a card: how it is loaded, and the command that trained it."""
    return re.findall(r"^```(?:python)?\n(.*?)^```", card.text, re.MULTILINE | re.DOTALL)


def test_the_card_has_the_figures_of_the_run(run, capfd):
    before = {p: p.read_bytes() for p in run.iterdir()}
    folder = export(run)
    out, err = capfd.readouterr()
    assert out.startswith(f"{folder}: model.safetensors, config.json and README.md") and not err
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert classifier.find_model(run) == run / "model.safetensors"  # the one in hub is newer
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("fastcifar", "image-classification")
    assert card.data.metrics == ["accuracy"] and card.data.license is None and card.data.datasets is None
    (measured,) = card.data.eval_results
    assert (measured.metric_type, measured.metric_value, measured.dataset_name) == (
        "accuracy",
        0.6,
        "x, 40 test images",
    )
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", card.text, re.MULTILINE))
    assert rows.items() >= {
        "accuracy, one view of each image (what an exported file gives)": "58.00%",
        "views of an image in the run's figure, at most": "6", "accuracy, last weights": "60.00%",
        "accuracy, averaged weights": "58.00%", "data": "x",
        "passes over the training images": "3", "training, seconds": "3.0", "whole process, seconds": "5.0",
        "machine": "a CPU", "precision": "fp32",
    }.items()  # fmt: skip
    assert "commit of fastcifar" not in rows and rows["version of fastcifar"] == "0.2.0"
    assert "accuracy, with test-time views" not in rows and all(name in card.text for name in NAMES)
    assert {p: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


def test_the_folder_loads_and_names_no_path(run, tmp_path, monkeypatch):
    folder = export(run)
    assert not [p for p in folder.iterdir() if str(tmp_path).encode() in p.read_bytes()]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    monkeypatch.chdir(folder)
    names = {"images": images}
    exec(blocks(ModelCard.load("README.md"))[0], names)
    expected = fastcifar.load(run).predict(images)
    assert names["names"] == expected[0] and names["probabilities"].equal(expected[1])


def test_the_command_of_the_card_trains_the_same(run):
    words = shlex.split(blocks(ModelCard.load(export(run) / "README.md"))[1])
    assert words[:2] == ["fastcifar", "train"] and words[-2:] == ["--data", "PATH"] and "--lr-peak" in words
    assert not method_differences(load_config(run / "config.json"), parse_config(words[2:], "fastcifar train"))


@pytest.mark.parametrize(
    "words",
    [
        "--recipe onecycle30 --swa-start 0.5 --swa-lr 0.02 --val-split 0.1",
        "--optimizer sgd --schedule cosine --no-cuda-graph --seed 3",
        "--schedule multistep --milestones 0.3 0.6 --swa-start None --tta none",
        "--smoke --data cifar10 --deterministic --tta-share 1",
        *(f"--recipe {name}" for name in RECIPES),
    ],
)
def test_a_command_gives_itself(words):
    config = parse_config(words.split(), "fastcifar train")
    again = shlex.split(command.training_command(config))[2:]
    assert len(again) <= len(words.split()) + 8
    parsed = parse_config([word if word != "PATH" else "auto" for word in again], "fastcifar train")
    assert parsed == config


def test_no_command_where_flags_cannot_say_it_and_two_for_a_longer_run(run):
    config = load_config(run / "config.json")
    assert command.training_command(fastcifar.Config(epochs=1, optimizer=config.optimizer,
                                                     schedule=config.schedule)) is None  # fmt: skip
    longer, _ = parse(["--resume", str(run), "--extend-epochs", "40"])
    assert command.training_command(longer).splitlines()[1] == "fastcifar train --resume RUN --extend-epochs 40"
    assert command.training_command(parse(["--init", "a\n```\nb"])[0]) is None
    assert "from Python" in hub_folder.make_card("a", {"accuracy": 0.5}, facts_of(run), None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize(("n_train", "known"), [(50_000, True), (2_000, False)])
def test_images_that_were_chosen_in_python_have_no_command(run, n_train, known, name):
    net, facts = command.load_model(run / "model.safetensors")
    write_model(run / "model.safetensors", net, {**facts, "dataset": name})
    summary = json.loads((run / "summary.json").read_text())
    record.write_json(run / "summary.json", {**summary, "n_train": n_train})
    card = ModelCard.load(export(run) / "README.md")
    assert json.loads((run / "hub/config.json").read_text())["data"]["source"] == name
    assert (f"--data {name}\n" in card.text) is known and ("from Python" in card.text) is not known


def facts_of(run):
    return command.load_model(run / "model.safetensors")[1]


def test_cifar10_is_named_as_on_the_hub(run):
    card = ModelCard(hub_folder.make_card("a", {"accuracy": 0.94, "n_test": 10_000},
                                          {**facts_of(run), "dataset": "cifar10"}, None))  # fmt: skip
    (measured,) = card.data.eval_results
    assert card.data.datasets == ["cifar10"] and measured.dataset_name == "CIFAR-10, 10,000 test images"
    assert (measured.dataset_type, measured.metric_value) == ("cifar10", 0.94)


def test_names_of_a_run_do_not_become_markup(run):
    odd = 'a"b: [x](http://a) | <b> \\ 😀 {'
    facts = {**facts_of(run), "dataset": odd + "\x07\n---\n", "classes": [odd, "`c`"]}
    card = ModelCard(hub_folder.make_card(odd, {"accuracy": 0.5, "device": odd}, facts, "c"))
    assert card.data.eval_results[0].dataset_name == odd + "??---?" and card.data.model_name == odd
    assert card.text.count("http") == 4 and not re.search(r"(?<!\\)(\]\(|<b)", card.text)


def test_addresses_and_formulas_of_a_run_stay_text(run):
    odd = "http://a.b/c HTTPS://d www.e.f ftp://g a@b.c $x^2$"
    card = ModelCard(hub_folder.make_card("a", {"accuracy": 0.5, "device": odd}, facts_of(run), "c"))
    (row,) = (line for line in card.text.splitlines() if line.startswith("| machine"))
    assert not re.search(r"(?i)(?<!\\)(://|[$@])|www\.", row)
    assert row.replace("\\", "").split(" | ")[1].removesuffix(" |") == odd


def refused(run, capfd, told):
    assert_refused(capfd, told, "export", run, "--format", "hub-folder")
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_bad_input_writes_nothing(run, capfd):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    refused(run, capfd, "has no accuracy in a summary.json")
    record.write_json(run / "summary.json", {**summary, "accuracy": 0.7})
    refused(run, capfd, "are of two runs")
    record.write_json(run / "summary.json", summary)
    (run / "other.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    assert_refused(capfd, "needs the run's other files", "export", run / "other.safetensors", "--format", "hub-folder")
    assert not (run / "hub").exists()
    (run / "hub").mkdir()
    (run / "hub" / "README.md").write_text("edited")
    refused(run, capfd, "is there already")
    assert (run / "hub" / "README.md").read_text() == "edited"
