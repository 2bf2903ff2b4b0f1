"""`fastcifar export RUN --format onnx|torch-export|hub-folder [--out PATH]`: a run's model for other programs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastcifar.cli import flags
from fastcifar.cli.flags import parse_quietly
from fastcifar.config.config import Config
from fastcifar.config.recipes import find_recipe
from fastcifar.config.settings import (
    SETTINGS,
    as_flag,
    method_differences,
    settings_by_flag,
    with_optimizer,
    with_settings,
)
from fastcifar.files import require_writable
from fastcifar.inference import export
from fastcifar.inference.classifier import load_with_facts
from fastcifar.inference.hub_folder import Material, has_chosen_images, without_paths, write_hub_folder
from fastcifar.runs.model_file import find_model, load_model
from fastcifar.runs.results import read_results


@dataclass(frozen=True)
class Options:
    """Writes the model of a run, normalisation included, as a file that other programs run, and checks that file."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (or its model.safetensors); in a folder of runs the newest is taken."""
    format: Literal["onnx", "torch-export", "hub-folder"]
    """ONNX, an archive of torch.export for `torch.export.load`, or a folder for the Hugging Face hub."""
    out: Path | None = None
    """The file or folder; by default model.onnx, model.pt2 or the folder hub in the run folder."""


def main(argv: Sequence[str]) -> int:
    """Writes the file and returns the exit code. ValueError or OSError when that is not possible."""
    options = parse_quietly(Options, argv, "fastcifar export")
    source = find_model(options.run)
    if options.format == "hub-folder":
        return export_hub_folder(source, options.out or source.with_name("hub"))
    path = options.out or source.with_name("model" + export.SUFFIXES[options.format])
    if path.is_dir() or path.resolve() == source.resolve():
        raise ValueError(f"--out {path}: is a folder or the model itself; name another file")
    classifier, facts = load_with_facts(source)
    require_writable(path.parent)  # before the work, which takes half a minute
    difference = export.export(classifier, options.format, path)
    count = len(classifier.classes)
    print(f"{path}: images uint8 [N, 32, 32, 3] -> logits float32 [N, {count}], {path.stat().st_size / 1e6:.1f} MB")
    print(f"loaded and run: its logits differ from those of the model by at most {difference:.1e}")
    if figure := figure_of_the_file(facts):
        print(figure)
    return 0


def figure_of_the_file(facts: dict[str, Any]) -> str:
    """The test accuracy of an exported graph, which takes one view, beside the run's; empty where it is not recorded.

    facts: those beside the weights, which may come from anywhere.
    """
    one, run, views = values = [facts.get(name, "") for name in ("accuracy_one_view", "accuracy", "views")]
    if not all(type(value) in (int, float) for value in values):
        return ""
    more = f"; the run's {run:.2%} takes up to {views:g} views" if views > 1 else ""
    return f"test accuracy {one:.2%}, with one view of each image{more}"


def export_hub_folder(model: Path, out: Path) -> int:
    """Writes the folder for the run of a model file, and returns the exit code. ValueError or OSError if it cannot."""
    if model.name != "model.safetensors":
        raise ValueError(f"{model}: a hub-folder needs the run's other files, too; give the folder of a run")
    facts = load_model(model)[1]
    results = read_results(model.parent)
    chosen = has_chosen_images(results, facts)
    command = None if chosen else training_command(without_paths(results.config, facts))
    write_hub_folder(out, Material(results, facts, command))
    print(f"{out}: model.safetensors, config.json and README.md, the model card; it names no license yet")
    print(f"to publish it: hf upload USER/NAME {shlex.quote(str(out))}")
    return 0


def training_command(config: Config) -> str | None:
    """The command that trains what the config says; None where flags cannot say it. `--data auto` becomes PATH."""
    try:
        recipe = find_recipe(config.run.recipe)
        large = {"schedule": config.schedule.name, "swa_start": config.tail and config.tail.start}
        base = settings_by_flag(with_settings(with_optimizer(recipe, config.optimizer.name), **large))
        base |= {name: value for name, value in settings_by_flag(recipe).items() if name in ("optimizer", *large)}
        words = ["--recipe", config.run.recipe]
        for name, value in settings_by_flag(config).items():
            part = SETTINGS[name].part if name in SETTINGS else "schedule"
            if name != "data" and (part != "run" or name == "smoke") and base.get(name, ...) != value:
                words += as_flag(name, value)
        parsed = flags.parse_config(words, prog="fastcifar train")
    except ValueError:  # from Python: an unknown recipe, or a setting that has no effect
        return None
    text = "".join(words)
    if method_differences(config, parsed) or config.evaluation != parsed.evaluation or not text.isprintable():
        return None
    words += ["--data", "PATH" if config.data.source == "auto" else config.data.source]
    command = shlex.join(["fastcifar", "train", *words])
    if config.run.extend_epochs:
        command += f"\nfastcifar train --resume RUN --extend-epochs {config.run.extend_epochs:g}"
    return command
