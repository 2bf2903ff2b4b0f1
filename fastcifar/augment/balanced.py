"""The order of an epoch in which every batch has its share of each class (`--order balanced`)."""

import numpy as np


def interleaved(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An order of all N images, [N] int64 -> the same with the classes interleaved; labels: [N] int64 of the images.

    Within a class the order stays, so that a random one stays random. Image k of a class of M stands at the place
    (k + 1/2) / M of the epoch: in any stretch, each class has its share up to a part of an image at either end.
    """
    drawn = labels[order]
    counts = np.bincount(drawn)
    by_class = drawn.argsort(kind="stable")
    number = np.empty_like(order)  # of the image within its class
    number[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[((number + 0.5) / counts[drawn]).argsort(kind="stable")]
