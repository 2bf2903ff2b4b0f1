"""Recognises CIFAR-10 by its content, in whatever container and order the images come.

A data set is named `cifar10`, and its accuracy compared with published ones, only if it passes this check: when it is
decoded, and again whenever it is read from a cache.
"""

from __future__ import annotations

import hashlib

from fastcifar.data.dataset import Dataset
from fastcifar.data.official import CIFAR10, CIFAR100
from fastcifar.data.raw import Images, Labels, RawData

CIFAR10_CONTENT = {
    "train": (50_000, "6c3d94351344c6460973c9795f4a4fcc19984b1b894a9b39889a02e380f4d4d3"),
    "test": (10_000, "7742db831caeba84ea1d4663e0d07ca1879cbb76e501e036935be5fd5506749b"),
}
"""Number of images and `content_digest` of the published splits, whose labels number the class names in alphabetical
order."""
CIFAR10_IN_FOLDERS = "ae68fbd7f5232674cbd8f5bfab0c4f9dc00e92e1576e34dfa8cf0951a1a116d7"
"""`Dataset.digest` of CIFAR-10 as an image folder: a cache of it needs no second look, which takes half a second."""


def is_cifar10(data: RawData | Dataset) -> bool:
    """Returns whether both splits hold exactly the images and labels of CIFAR-10, in any order."""
    splits = {"train": (data.x_train, data.y_train), "test": (data.x_test, data.y_test)}
    if any(len(labels) != CIFAR10_CONTENT[name][0] for name, (_, labels) in splits.items()):
        return False  # saves hashing 60,000 images of other sets
    return all(content_digest(*splits[name]) == digest for name, (_, digest) in CIFAR10_CONTENT.items())


def is_known_by_content(dataset: Dataset) -> bool:
    """Returns whether the images alone show that the set is the one it is named after.

    True for a name that stands for no published set. `dataset.digest` must have been compared with the arrays.
    """
    if dataset.name == CIFAR10.name:
        return dataset.digest == CIFAR10_IN_FOLDERS or is_cifar10(dataset)
    return dataset.name != CIFAR100.name


def content_digest(images: Images, labels: Labels) -> str:
    """Returns the SHA-256 over the sorted SHA-256 digests of each image's pixels and label: the same in every order.

    images: uint8 [N, 32, 32, 3], C-contiguous. labels: int64 [N], hashed as 8 bytes, little-endian.
    """
    pairs = zip(images, labels.astype("<i8"), strict=True)
    digests = sorted(hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs)
    return hashlib.sha256(b"".join(digests)).hexdigest()
