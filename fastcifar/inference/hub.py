"""Models on the Hugging Face hub, by huggingface_hub's mixin: a folder of `hub_folder` goes up and comes down.

Only `Classifier.from_pretrained`, `save_pretrained` and `push_to_hub` import this file, as huggingface_hub is an extra.
What comes down is a stranger's: it is read by `fastcifar.load`, with every value checked, and nothing is executed.
"""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from fastcifar.inference.classifier import Classifier
from fastcifar.inference.hub_folder import (
    Material,
    has_chosen_images,
    require_free,
    require_results,
    without_paths,
    write_hub_folder,
)
from fastcifar.runs.config_file import config_from_plain, config_to_plain
from fastcifar.runs.model_file import digest_of, load_model
from fastcifar.runs.results import RunResults, read_results

FILES = ("model.safetensors", "config.json", "README.md")


class HubModel(ModelHubMixin, library_name="fastcifar", pipeline_tag="image-classification"):
    """A classifier as the mixin saves and publishes it. ValueError when no model card can be made of it.

    The mixin's own `from_pretrained` is not used: it reads any config.json, of any size, before that can be checked.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.material = classifier, material_of(classifier)

    def save_pretrained(self, save_directory: str | Path, **arguments: Any) -> str | None:
        require_free(Path(save_directory))  # the mixin would remove a config.json there, that of a run for instance
        return super().save_pretrained(save_directory, **arguments)

    def _save_pretrained(self, save_directory: Path) -> None:
        if isinstance(self.material, Material):
            write_hub_folder(save_directory, self.material, self.classifier.network, save_directory.name)
        else:
            for file in self.material:
                shutil.copyfile(file, save_directory / file.name)


def material_of(classifier: Classifier) -> Material | list[Path]:
    """What the folder of a classifier is made of; the files themselves where it was loaded from such a folder.

    ValueError when it comes from no run, or its weights are no longer those that the run measured.
    """
    origin = classifier.origin
    material: Material | list[Path]
    if origin is None:
        raise ValueError("this model has no run whose figures its card could give; take result.model of a training, "
                         "or fastcifar.load(RUN)")  # fmt: skip
    if isinstance(origin, Material):
        material, digest = origin, origin.digest or ""
    else:
        network, facts = load_model(origin, network=classifier.network)
        material, digest = _material_of_file(origin, facts), digest_of(network)
    if digest_of(classifier.network) != digest:
        raise ValueError("the weights have changed since the run measured them, so its figures do not hold; train them "
                         "by fastcifar.train(init=RUN)")  # fmt: skip
    return material


def _material_of_file(path: Path, facts: dict[str, Any]) -> Material | list[Path]:
    folder = path.parent
    files = [folder / name for name in FILES]
    if not (folder / "summary.json").exists() and all(file.is_file() for file in files):
        return files
    if path.name != FILES[0]:
        raise ValueError(f"{path}: a model card needs the run's other files, too; load the folder of a run")
    run = read_results(folder)
    require_results(run, facts)
    return Material(run, facts, None if has_chosen_images(run, facts) else _command(run, facts))


def _command(run: RunResults, facts: dict[str, Any]) -> str | None:
    """The command that trains with the config.json of the folder; None where that does not give the run."""
    config = without_paths(run.config, facts)
    try:
        config_from_plain(config_to_plain(config), "config.json")
    except ValueError:  # a schedule from Python
        return None
    if config.from_python or config.run.extend_epochs:
        return None
    source = "PATH" if config.data.source == "auto" else config.data.source
    return f"fastcifar train --config config.json --data {source}"


def fetch(name_or_folder: str | Path, arguments: dict[str, Any]) -> Path:
    """The folder itself, or one of the hub's cache with the files of a repository. ValueError when there is none."""
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    try:
        return Path(snapshot_download(str(name_or_folder), allow_patterns=list(FILES), **arguments))
    except Exception as error:  # a package of others may raise anything
        raise ValueError(
            f"{name_or_folder}: is no folder, and the hub does not give it ({_one_line(error)})"
        ) from error


def publish(classifier: Classifier, repo_id: str, arguments: dict[str, Any]) -> str:
    """`Classifier.push_to_hub`."""
    model = HubModel(classifier)  # before a repository is made
    try:
        return model.push_to_hub(repo_id, **arguments)
    except Exception as error:
        raise ValueError(f"{repo_id}: the hub does not take it ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
