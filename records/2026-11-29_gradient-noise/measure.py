"""How much noise does a weight gradient get that is made from half of the positions of a map?

    python measure.py RUN SIZE     # a run folder with checkpoint.pt, size of the images in pixels

Eight batches of 500 images of CIFAR-10, cropped and mirrored. A gradient from half of the positions, doubled, has the
same mean and more noise. Printed is that noise as a share of the noise that the gradient of a batch has anyway:
E|2 G_half - G|^2 / E|G - mean of G|^2. "signal" is |mean of G|^2 / E|G - mean of G|^2.
"""

import sys
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

from fastcifar.config.config import Model
from fastcifar.data.load import _load_path
from fastcifar.models.networks import make_model

DATA = "PATH/cifar10-png.tar.xz"
BATCHES = 8


def main(run: str, size_px: int) -> None:
    saved = torch.load(Path(run) / "checkpoint.pt", weights_only=True)
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"]["model"].items()}
    net = make_model(Model(**settings), 10, seed=0)
    net.load_state_dict(saved["state"]["model"])
    net.train()
    data = _load_path(Path(DATA), None, False, 0.0)
    images, labels = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train).long()
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, torch.nn.Conv2d)}
    del layers["stem"]
    seen = {}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _, inputs, y, name=name: (
                y.register_hook(lambda g: seen.__setitem__(name, (inputs[0].detach(), g))) and None
            )
        )
    random = torch.Generator().manual_seed(1)
    whole, added = defaultdict(list), defaultdict(lambda: defaultdict(float))
    for _ in range(BATCHES):
        x, y = batch(images, labels, size_px, random)
        F.cross_entropy(net(x), y, label_smoothing=0.2, reduction="sum").backward()
        for name, layer in layers.items():
            inputs, g = seen[name]
            gradient = weight_gradient(inputs, g, layer)
            whole[name].append(gradient)
            for kind, half in halves(g, random).items():
                less = weight_gradient(inputs, (g * half).contiguous(memory_format=torch.channels_last), layer)
                added[name][kind] += (2 * less - gradient).norm().item() ** 2 / BATCHES
    for name, layer in layers.items():
        gradients = torch.stack(whole[name])
        mean = gradients.mean(0)
        noise = (gradients - mean).norm().item() ** 2 / (BATCHES - 1)
        signal = mean.norm().item() ** 2 / noise - 1 / BATCHES
        shares = "  ".join(f"{kind} {value / noise:.2f}" for kind, value in added[name].items())
        map_size = "x".join(map(str, seen[name][1].shape[2:]))
        print(f"{name} {tuple(layer.weight.shape)} on {map_size}: signal {signal:.2f}; {shares}", flush=True)


def batch(images, labels, size_px, random):
    """500 images, normalised, moved by up to two pixels, every second one mirrored."""
    chosen = torch.randint(len(images), (500,), generator=random)
    x = images[chosen].permute(0, 3, 1, 2).float()
    x = (x - torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)) / torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    tops, lefts = torch.randint(5, (2, 500), generator=random).tolist()
    corners = enumerate(zip(tops, lefts, strict=True))
    x = torch.stack([x[i, :, top : top + 32, left : left + 32] for i, (top, left) in corners])
    if size_px != 32:
        x = F.interpolate(x, size=(size_px, size_px), mode="bilinear", antialias=True)
    mirrored = torch.rand(500, generator=random) < 0.5
    x[mirrored] = x[mirrored].flip(3)
    return x.contiguous(memory_format=torch.channels_last), labels[chosen]


def halves(g, random):
    """Masks of a half of the positions of g [B, N, H, W], or of its images."""
    first = torch.randint(2, (), generator=random).item()
    rows, columns = torch.arange(g.shape[2]).view(-1, 1), torch.arange(g.shape[3])
    return {
        "every second row": (rows % 2 == first).float().expand(g.shape[2:]),
        "chessboard": ((rows + columns) % 2 == first).float(),
        "every second image": (torch.arange(len(g)).view(-1, 1, 1, 1) % 2 == first).float(),
    }


def weight_gradient(x, g, layer):
    none, one = [0, 0], [1, 1]
    return torch.ops.aten.convolution_backward(
        g, x, layer.weight, None, one, list(layer.padding), one, False, none, 1, [False, True, False]
    )[1]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
