# %% [markdown]
# Which images teach the most? Trains on the hardest 60% of the images (by the loss of a short training) and on a
# random 60%, at an equal number of steps, and compares the accuracies over a few seeds.
#
#     python examples/data_selection.py --data cifar10 --epochs 8 --runs 3

# %%
from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
import torch.nn.functional as F

import fastcifar
from fastcifar.data.load import load


def loss_per_image(dataset: fastcifar.Dataset, **settings: object) -> np.ndarray:
    """Cross-entropy of each training image under a model trained on all of them."""
    model = fastcifar.train("swa30", data=dataset, **settings).model
    logits = model.logits(dataset.x_train)
    return F.cross_entropy(logits, torch.from_numpy(dataset.y_train), reduction="none").numpy()


def accuracy_on(dataset: fastcifar.Dataset, rows: np.ndarray, **settings: object) -> float:
    """Test accuracy after training on some rows of the training images."""
    test = (dataset.x_test, dataset.y_test)
    return fastcifar.fit(dataset.x_train[rows], dataset.y_train[rows], test, dataset.classes, **settings).accuracy


# %%
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="auto")
    parser.add_argument("--subset", type=int)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    dataset = load(options.data, subset=options.subset)
    count = int(options.share * len(dataset.y_train))
    results: dict[str, list[float]] = {"hardest": [], "random": []}
    for seed in range(options.runs):
        settings = {"epochs": options.epochs, "seed": seed}
        hardest = np.argsort(-loss_per_image(dataset, **settings))[:count]
        chance = np.random.default_rng(seed).permutation(len(dataset.y_train))[:count]
        results["hardest"].append(accuracy_on(dataset, hardest, **settings))
        results["random"].append(accuracy_on(dataset, chance, **settings))
    for name, values in results.items():
        print(f"{name} {options.share:.0%}: {statistics.fmean(values):.2%}", [f"{v:.2%}" for v in values])


if __name__ == "__main__":
    main()
