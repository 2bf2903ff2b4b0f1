"""Recognises CIFAR-10 by its content, in whatever container and order the images come.

A data set is named `cifar10`, and its accuracy compared with published ones, only if it passes this check or is the
official batch files.
"""

from __future__ import annotations

import hashlib

from fastcifar.data.raw import Images, Labels, RawData

CIFAR10_CONTENT = {
    "train": "6c3d94351344c6460973c9795f4a4fcc19984b1b894a9b39889a02e380f4d4d3",
    "test": "7742db831caeba84ea1d4663e0d07ca1879cbb76e501e036935be5fd5506749b",
}
"""`content_digest` of the published CIFAR-10, whose labels number the class names in alphabetical order."""


def is_cifar10(raw: RawData) -> bool:
    """Returns whether both splits hold exactly the images and labels of CIFAR-10, in any order."""
    if len(raw.y_train) != 50_000 or len(raw.y_test) != 10_000:  # saves hashing 60,000 images of other sets
        return False
    splits = {"train": (raw.x_train, raw.y_train), "test": (raw.x_test, raw.y_test)}
    return all(content_digest(*splits[name]) == digest for name, digest in CIFAR10_CONTENT.items())


def content_digest(images: Images, labels: Labels) -> str:
    """Returns the SHA-256 over the sorted SHA-256 digests of each image's pixels and label: the same in every order.

    images: uint8 [N, 32, 32, 3], C-contiguous. labels: int64 [N], hashed as 8 bytes, little-endian.
    """
    pairs = zip(images, labels.astype("<i8"), strict=True)
    digests = sorted(hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs)
    return hashlib.sha256(b"".join(digests)).hexdigest()
