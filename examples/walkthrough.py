# %% [markdown]
# From images to a file that other programs run, in five cells: train, look at mistakes, ask two models, export. As it
# stands it takes a few minutes on two cores; `--data cifar10 --images 50000 --epochs 8` is the real thing.
#
#     python examples/walkthrough.py

# %%
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import fastcifar
from fastcifar.data.load import load
from fastcifar.inference.export import export

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="synthetic", help="synthetic, cifar10 or a path, as --data of the training")
parser.add_argument("--images", type=int, default=2000)
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--out", type=Path, default=Path("walkthrough"))
options, _ = parser.parse_known_args()

# %% [markdown]
# Train two networks that differ in their seed alone. Each leaves a run folder.

# %%
dataset = load(options.data, subset=options.images)
settings = {"scale": "small", "batch_size": min(500, options.images // 20), "epochs": options.epochs}
models = [fastcifar.train(data=dataset, out=options.out / f"s{s}", seed=s, **settings).model for s in range(2)]

# %% [markdown]
# Look at the mistakes of the first: the wrongly named test images of which it is surest, and the right class.

# %%
names, sure = models[0].predict(dataset.x_test)
right = [dataset.classes[label] for label in dataset.y_test]
wrong = [i for i in np.argsort(-sure.numpy()) if names[i] != right[i]]
for i in wrong[:5]:
    print(f"image {i}: {names[i]} with {sure[i]:.0%}, but it is {right[i]}")

# %% [markdown]
# Ask both: the mean of their probabilities.

# %%
probabilities = [model.logits(dataset.x_test, views=True).softmax(1) for model in models]
for name, p in (("first", probabilities[0]), ("second", probabilities[1]), ("both", sum(probabilities) / 2)):
    print(f"{name}: {(p.argmax(1) == torch.from_numpy(dataset.y_test)).float().mean():.2%}")

# %% [markdown]
# Export the first for `torch.export.load`; "onnx" makes an ONNX file. The file is run and compared before it is kept.

# %%
difference = export(models[0], "torch-export", options.out / "model.pt2")
print(f"exported: its logits differ from those of the model by at most {difference:.0e}")
