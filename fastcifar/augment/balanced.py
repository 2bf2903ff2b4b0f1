"""The order of an epoch in which every batch has its share of each class (`--order balanced`)."""

import numpy as np


def interleaved(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An order of all N images, [N] int64 -> the same with the classes interleaved; labels: [N] int64 of the images.

    Within a class the order stays, so that a random one stays random. Image k of a class of M stands at the place
    (k + u) / M of the epoch: in any stretch, each class has its share up to an image. u is a number of the class
    between 0 and 1, so that many small classes of one size do not stand side by side; where all are of one size it is
    1/2.
    """
    drawn = labels[order]
    counts = np.bincount(drawn)
    by_class = drawn.argsort(kind="stable")
    number = np.empty_like(order)  # of the image within its class
    number[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    spread = (np.arange(len(counts)) + 0.5) / len(counts)
    within = np.full(len(counts), 0.5) if (counts == counts[0]).all() else spread
    return order[((number + within[drawn]) / counts[drawn]).argsort(kind="stable")]
