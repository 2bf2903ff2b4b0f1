"""A trained model as a folder that the Hugging Face hub takes: model.safetensors, config.json and a model card.

The card is README.md: YAML for the hub's search (https://huggingface.co/docs/hub/model-cards), then what was measured
and how the model is used. No path of this machine is in the folder.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from fastcifar.config.config import Config
from fastcifar.runs.config_file import config_to_plain
from fastcifar.runs.model_file import FROM_PYTHON, write_model
from fastcifar.runs.record import write_json
from fastcifar.runs.results import RunResults

SYNTHETIC = " They are the built-in synthetic images: no figure here says anything about CIFAR-10."
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
"""Data sets that the hub has under these ids, and how people call them."""
CARD = """\
---
library_name: fastcifar
pipeline_tag: image-classification
tags: {tags}
{datasets}metrics: [accuracy]
model-index:
- name: {name}
  results:
  - task: {{type: image-classification}}
    dataset: {{type: {dataset}, name: {dataset_name}, split: test}}
    metrics:
    - {{type: accuracy, value: {accuracy}}}
# The license of the weights is yours to choose, for example:
# license: mit
---

# {title}

An image classifier for 32x32 RGB images, trained with fastcifar. It knows {count} classes: {classes}.

{table}

Accuracies are those of the test images.{warning} The run stands for {percent}.

## Use

```python
import fastcifar

model = fastcifar.load("."{network})  # this folder
# from the hub: model = fastcifar.Classifier.from_pretrained("USER/NAME"{network})
names, probabilities = model.predict(images)  # images: uint8 [N, 32, 32, 3]
```

`model.safetensors` has the weights, the normalisation and the names of the classes; nothing in it is executed.

## Training

{training}

`config.json` has every setting.
"""


@dataclass(frozen=True)
class Material:
    """What the folder of a finished run is made of."""

    run: RunResults
    facts: dict[str, Any]
    """Those beside the run's weights."""
    command: str | None = None
    """What trained the model, for the card; None where no command does."""
    digest: str | None = None
    """Of the weights, where they are in no file (`fastcifar.runs.model_file.digest_of`)."""


def require_free(folder: Path) -> None:
    """ValueError when `folder` holds files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is there already, perhaps with a card that you have changed; remove it, or name "
                         "another folder")  # fmt: skip


def write_hub_folder(
    folder: Path, material: Material, network: nn.Module | None = None, title: str | None = None
) -> None:
    """Writes the folder for a finished run: whole or not at all.

    network: has the weights; by default they are copied from the run folder. title: of the card; by default the run
    folder's name. Raises ValueError when `folder` holds files or the run has no results of its model, OSError when it
    cannot be written.
    """
    run, facts = material.run, material.facts
    require_results(run, facts)
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as made:
        part = Path(made) / "folder"
        part.mkdir()
        if network is None:
            shutil.copyfile(run.folder / "model.safetensors", part / "model.safetensors")
        else:
            write_model(part / "model.safetensors", network, facts)
        write_json(part / "config.json", config_to_plain(without_paths(run.config, facts)))
        card = make_card(title or run.folder.resolve().name, run.summary, facts, material.command)
        (part / "README.md").write_text(card, encoding="utf-8")
        os.replace(part, folder)  # takes the place of an empty folder, too


def require_results(run: RunResults, facts: dict[str, Any]) -> None:
    """ValueError when the run has no accuracy, or one of another model than that of the facts."""
    if run.summary.get("accuracy") is None:
        raise ValueError(f"{run.folder}: has no accuracy in a summary.json; give the folder of a finished run")
    if run.summary["accuracy"] != facts.get("accuracy"):
        raise ValueError(f"{run.folder}: model.safetensors and summary.json are of two runs; give a folder as a run "
                         "left it")  # fmt: skip


def has_chosen_images(run: RunResults, facts: dict[str, Any]) -> bool:
    """Whether the run was on some images of a known set that Python code chose, so that no command repeats it."""
    data = run.config.data
    part = data.subset is None and not data.val_split and run.summary.get("n_train", 50_000) != 50_000
    return facts.get("dataset") in NAMES and part


def without_paths(config: Config, facts: dict[str, Any]) -> Config:
    """The settings without what tells of one machine. Data that fastcifar does not find by name become `auto`."""
    dataset = str(facts.get("dataset"))
    data = replace(config.data, source=dataset if dataset in (*NAMES, "synthetic") else "auto")
    model = replace(config.model, init=config.model.init and Path(config.model.init).name)
    return replace(config, data=data, model=model)


def make_card(title: str, summary: dict[str, Any], facts: dict[str, Any], command: str | None) -> str:
    """README.md of the folder. summary: checked entries of summary.json; facts: those beside the weights."""
    dataset, classes = str(facts.get("dataset")), facts["classes"]
    known, images = dataset in NAMES, summary.get("n_test")
    dataset_name = NAMES.get(dataset, dataset) + (f", {images:,.0f} test images" if images else "")
    tags = list(dict.fromkeys(["image-classification", "fastcifar", "pytorch", facts["network"], dataset]))
    training = f"```\n{command}\n```" if command else "It was trained from Python, or with settings that no flag has."
    return CARD.format(
        tags=_yaml(tags), datasets=f"datasets: [{dataset}]\n" if known else "", name=_yaml(title),
        dataset=_yaml(dataset), dataset_name=_yaml(dataset_name), accuracy=f"{summary['accuracy']:.6g}",
        title=_markdown(title), count=len(classes), classes=_markdown(", ".join(classes)),
        table=_table(summary, facts, dataset), percent=f"{summary['accuracy']:.2%}", training=training,
        network=", network=MAKES_IT" if facts["network"] == FROM_PYTHON else "",
        warning=SYNTHETIC if dataset == "synthetic" else "",
    )  # fmt: skip


def _table(summary: dict[str, Any], facts: dict[str, Any], dataset: str) -> str:
    def value(name: str, form: str = "{}") -> str | None:
        return None if summary.get(name) is None else form.format(summary[name])

    rows = {
        "accuracy, last weights": value("accuracy_raw", "{:.2%}"),
        "accuracy, averaged weights": value("accuracy_swa", "{:.2%}"),
        "accuracy, with test-time views": value("accuracy_tta", "{:.2%}"),
        "accuracy, one view of each image (what an exported file gives)": value("accuracy_one_view", "{:.2%}"),
        "views of an image in the run's figure, at most": value("views", "{:.0f}"),
        "data": NAMES.get(dataset, dataset),
        "training images": value("n_train", "{:,.0f}"),
        "test images": value("n_test", "{:,.0f}"),
        "network": f"{facts['network']}, {facts['scale']}",
        "passes over the training images": value("epochs", "{:g}"),
        "optimizer steps": value("num_steps", "{:,.0f}"),
        "training, seconds": value("train_s", "{:,.1f}"),
        "whole process, seconds": value("wall_s", "{:,.1f}"),
        "machine": value("device"), "precision": value("precision"), "version of fastcifar": value("version"),
        "commit of fastcifar": value("commit"),
    }  # fmt: skip
    return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {_markdown(v)} |" for k, v in rows.items() if v)])


def _yaml(value: Any) -> str:
    """A value of a YAML block: JSON, in which YAML reads the same."""
    return json.dumps(_printable(value) if isinstance(value, str) else [_printable(v) for v in value],
                      ensure_ascii=False)  # fmt: skip


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _markdown(text: str) -> str:
    """Text of a run's files as text of a page: nothing in it becomes a link, a formula, a table or HTML."""
    return re.sub(r"[\\`*_{}\[\]<>|#!$@]|:(?=//)|(?<=www)\.", r"\\\g<0>", _printable(text), flags=re.IGNORECASE)
