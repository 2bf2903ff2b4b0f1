# %% [markdown]
# A network of timm, mixup of torchvision, AdamW, an end at a target, an ONNX file: all by `fastcifar.fit`.
#
#     python examples/timm_network.py --data cifar10 --images 50000 --epochs 30 --stop-at 0.9

# %%
import argparse
from pathlib import Path

import timm
import torch
from torchvision.transforms import v2

import fastcifar
from fastcifar.data.load import load

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="synthetic", help="synthetic, cifar10 or a path, as --data of the training")
parser.add_argument("--images", type=int, default=2000)
parser.add_argument("--epochs", type=float, default=5)
parser.add_argument("--network", default="resnet10t")
parser.add_argument("--stop-at", type=float, default=0.5)
options = parser.parse_args()
dataset = load(options.data, subset=options.images)

# %%
result = fastcifar.fit(
    dataset.x_train, dataset.y_train, (dataset.x_test, dataset.y_test), dataset.classes,
    network=lambda: timm.create_model(options.network, num_classes=len(dataset.classes)),
    optimizer=lambda params: torch.optim.AdamW(params, lr=2e-3, weight_decay=0.05),
    transform=v2.MixUp(num_classes=len(dataset.classes)),
    batch_size=100, epochs=options.epochs, stop_at=options.stop_at,
)  # fmt: skip
print(f"accuracy {result.accuracy:.2%} in {result.summary['num_steps']} steps, stopped: {result.summary['stopped']}")

# %%
difference = fastcifar.export(result.model, "onnx", Path("model.onnx"))
print(f"exported: its logits differ from those of the model by at most {difference:.0e}")
