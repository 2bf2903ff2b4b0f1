"""A run's models, as they are measured together: its own, the raw one and samples of SWAG, and its test images."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcifar.config.config import Config, Evaluation, Machine
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load, load_of
from fastcifar.inference.classifier import Classifier, load_with_facts
from fastcifar.optim.averaging import refresh_batch_norm
from fastcifar.optim.swag import draw_sample
from fastcifar.runs import checkpoint
from fastcifar.runs.config_file import load_config
from fastcifar.runs.model_file import SWAG_FILE, find_model, load_swag
from fastcifar.runs.results import read_summary
from fastcifar.training.hardware import DTYPES, resolve
from fastcifar.training.refresh import refresh_batches
from fastcifar.training.step import autocast
from fastcifar.training.task import make_task


@dataclass(frozen=True)
class TrainedRun:
    """A run's model, and how to find the images that it was trained on."""

    folder: Path
    model: Classifier
    data: dict[str, Any] | None
    """Arguments of `fastcifar.data.load.load`; None when the run folder does not say."""
    data_name: str
    """What the run's record calls the data set."""
    config: Config | None
    """None without a config.json."""
    accuracy: float | None
    """Test accuracy that the run stands for, as its summary has it; None when it was not recorded."""

    @property
    def evaluation(self) -> Evaluation:
        """The views that the run's own figure was measured with; image and mirror when the run does not say."""
        return self.config.evaluation if self.config else Evaluation(tta="flip")

    @property
    def is_average(self) -> bool:
        """Whether the model has averaged weights: its run has a tail, and did not stop before it."""
        summary = read_summary(self.folder)
        has_tail = self.config is not None and self.config.tail is not None
        return has_tail and (not summary or summary["accuracy_swa"] is not None)

    @property
    def precision(self) -> str:
        """The arithmetic that the run's own figure was measured in; fp32 when the run does not say."""
        name = self.config.machine.precision if self.config else "auto"
        return "fp32" if name == "auto" else name


def read_run(where: Path) -> TrainedRun:
    """The run in a folder, the newest run in a folder of runs, or the one of a model.safetensors.

    ValueError when there is none or a file of it is damaged.
    """
    path = find_model(where)
    model, facts = load_with_facts(path)
    name, settings = str(facts.get("dataset")), path.with_name("config.json")
    config = load_config(settings) if settings.exists() else None
    accuracy = facts.get("accuracy")
    accuracy = accuracy if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1 else None
    return TrainedRun(path.parent, model, _recorded_data(config, name), name, config, accuracy)


def raw_model(run: TrainedRun) -> Classifier | None:
    """The run's model with the weights and statistics of its last step, from checkpoint.pt; None without that file.

    ValueError when the checkpoint is damaged, or not of the end of this run.
    """
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return None
    state, model = checkpoint.load(path)["state"], copy.deepcopy(run.model)
    try:
        checkpoint.check(state["model"], model.network.state_dict(), "model")
        # a run that reached --stop-at has a shorter one than its schedule
        if state["step"] != (read_summary(run.folder).get("num_steps") or len(state["schedule"]["table"])):
            raise ValueError("the training has not ended there")
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path}: does not have the last weights of the run ({type(e).__name__}: {e}); move it away "
                         "to measure without them") from e  # fmt: skip
    model.network.load_state_dict(state["model"])
    return model


def swag_models(run: str | Path, count: int, data: Dataset | None = None) -> Iterator[Classifier]:
    """Draws `count` models from the Gaussian of a run that was trained with --swag-rank (`fastcifar.optim.swag`).

    Each has batch-norm statistics of its own: those of augmented training images.

    run: a run folder with swag.safetensors. data: whose training images are taken; by default those of the run. The
    draws depend on the seed of the run alone, so a longer series begins with the shorter one. Probabilities of the
    models are to be averaged. Raises ValueError when a file of the run is missing or damaged, or the data is.
    """
    network, facts, gaussian = load_swag(Path(run))
    config = load_config(Path(run) / "config.json")
    dataset = load_of(config, progress=False) if data is None else data
    if tuple(facts["classes"]) != dataset.classes:
        raise ValueError(f"{Path(run) / SWAG_FILE}: is of a model for other classes than those of {dataset.name}")
    if not len(dataset.y_train):
        raise ValueError(f"{dataset.name}: has no training images to refresh the batch norms of SWAG's samples with")
    machine = Machine(executor="torch", compile="off")  # the run may have been trained on another one
    config, hardware = resolve(replace(config, machine=machine, from_python=""))  # a loss or a transform is not needed
    task = make_task(config, replace(dataset, mean=tuple(facts["mean"]), std=tuple(facts["std"])), hardware)
    task.executor.fill_borders()
    batches = list(refresh_batches(task))
    mean = {name: p.detach().clone() for name, p in network.named_parameters()}
    for i in range(count):
        model = copy.deepcopy(network)
        draw_sample(model, mean, gaussian, (config.seed * 65_537 + i) % 2**63)
        model.to(hardware.device)
        with autocast(hardware):
            refresh_batch_norm(model, batches)
        yield Classifier(model, facts["classes"], facts["mean"], facts["std"]).to(hardware.device).eval()


def _recorded_data(config: Config | None, name: str) -> dict[str, Any] | None:
    """What the config says; where that is `auto`, the set that was found then. `auto` without a config."""
    if config is None:
        return {"source": "auto"}
    source = config.data.source
    if source == "auto":
        if name not in ("cifar10", "synthetic"):  # arrays from Python
            return None
        source = name
    data = config.data
    return {"source": source, "subset": data.subset, "smoke": config.run.smoke, "test_split": data.test_split}


def load_test_images(run: TrainedRun, data: str | None, cache_dir: str | None, test_split: float = 0.0) -> Dataset:
    """The data set `data` (as --data of the training), or the one that the run was trained on.

    test_split: of `data`. cache_dir: as --cache-dir of the training; it is not what the run's config.json says, which
    may be a stranger's.

    ValueError when it cannot be read, has no test images or has other classes than the model.
    """
    if data is None and run.data is None:
        raise ValueError(f"{run.folder}: was trained on {run.data_name!r}, and where that is was not recorded; give "
                         "--data")  # fmt: skip
    if data is None and test_split:
        raise ValueError("--test-split has no effect here: it belongs to --data; else the run's own is taken")
    own = {"source": data, "test_split": test_split}
    arguments: dict[str, Any] = own if data is not None else run.data or {}
    try:
        dataset = load(**arguments, cache_dir=cache_dir, progress=sys.stderr.isatty())
    except ValueError as e:
        raise ValueError(f"{e} (recorded in {run.folder}; --data names another)" if data is None else str(e)) from e
    if not len(dataset.y_test):
        raise ValueError(f"{dataset.name}: has no test images")
    require_classes(dataset, run.model, f" in {run.folder}")
    return dataset


def require_classes(dataset: Dataset, model: Classifier, where: str = "") -> None:
    """ValueError unless the data set has the model's classes in the model's order. where: said after "the model"."""
    if dataset.classes != model.classes:
        raise ValueError(f"{dataset.name}: has the classes {some_of(dataset.classes)}; the model{where} knows "
                         f"{some_of(model.classes)}")  # fmt: skip


def some_of(names: tuple[str, ...]) -> str:
    """The first names, and how many there are."""
    first = ", ".join(name[:30] for name in names[:10])
    return first if len(names) <= 10 else f"{first}, ... ({len(names)})"


def log_probabilities(
    model: Classifier, dataset: Dataset, views: bool | str, share: float = 1.0, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(log-probabilities [N, K] f64, labels [N]) of the test images, computed on the GPU where there is one.

    Arguments as for `Classifier.logits`. In f64 logits that differ have probabilities that differ.
    """
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = model.logits(dataset.x_test, views, share, DTYPES[precision])
    return logits.double().log_softmax(1), torch.as_tensor(dataset.y_test)
