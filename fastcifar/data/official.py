"""The official files of CIFAR-10 and CIFAR-100: what they are called and contain, and how they become arrays.

The callers read the files from a folder or from the official archive; `pickles` unpickles them safely. CIFAR-100 is
read with its 100 fine labels, and known by its files. CIFAR-10 is known by its content, in whatever container and order
the images come: a data set is named `cifar10`, and its accuracy compared with published ones, only if it passes
`is_cifar10`, when it is decoded and again whenever it is read from a cache.

Letters: N images of H = W = 32 pixels.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastcifar.data.checks import Images, Labels, RawData
from fastcifar.data.messages import DataError
from fastcifar.data.pickles import unpickle_dict


class OfficialSet(NamedTuple):
    """A published data set."""

    name: str
    """Value of --data."""
    title: str
    folder: str
    archive: str
    archive_md5: str
    """As torchvision.datasets has it, too."""
    archive_sha256: str
    """As the checksums of TensorFlow Datasets and Keras have it, too."""
    archive_bytes: int
    url: str
    size: str
    """Of the archive, for people."""
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: bytes
    names_key: bytes
    sha256: dict[str, str]
    """Of each file's content; empty for a set that is recognised by its images (`is_cifar10`)."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that hold the set."""
        return (*self.train, self.test, self.meta)


CIFAR10 = OfficialSet(
    name="cifar10", title="CIFAR-10", folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz", archive_md5="c58f30108f718f92721af3b95e74349a",
    archive_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", archive_bytes=170_498_071,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", size="170 MB",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)), test="test_batch", meta="batches.meta",
    labels_key=b"labels", names_key=b"label_names", sha256={},
)  # fmt: skip
CIFAR100 = OfficialSet(
    name="cifar100", title="CIFAR-100", folder="cifar-100-python",
    archive="cifar-100-python.tar.gz", archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    archive_sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7", archive_bytes=169_001_437,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", size="169 MB",
    train=("train",), test="test", meta="meta",
    labels_key=b"fine_labels", names_key=b"fine_label_names",
    sha256={
        "train": "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
        "test": "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864",
        "meta": "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9",
    },
)  # fmt: skip
CIFAR10_CONTENT = {
    "train": (50_000, "6c3d94351344c6460973c9795f4a4fcc19984b1b894a9b39889a02e380f4d4d3"),
    "test": (10_000, "7742db831caeba84ea1d4663e0d07ca1879cbb76e501e036935be5fd5506749b"),
}
"""Number of images and `content_digest` of the published splits, whose labels number the class names in alphabetical
order."""
OFFICIAL_SETS = {official.name: official for official in (CIFAR10, CIFAR100)}


def find_official(path: Path) -> tuple[OfficialSet, Path] | None:
    """The official set whose files are in `path`, or in the folder of the published name inside it, and that folder."""
    for official in OFFICIAL_SETS.values():
        is_inside = path.name == official.folder or (path / official.train[0]).is_file()
        root = path if is_inside else path / official.folder
        if root.is_dir():
            return official, root
    return None


def decode_official(where: Path, official: OfficialSet, files: dict[str, bytes]) -> RawData:
    """The data set in the official files: images uint8 [N, 32, 32, 3], labels int64 [N].

    `files` maps a file's name to its content. Any files of this format are accepted; `published` of the result names
    the set whose known digests they have. Raises DataError if one is missing or malformed.
    """
    missing = [name for name in official.files if name not in files]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}; download the archive again")
    meta = f"{where}/{official.meta}"
    names = unpickle_dict(meta, files[official.meta]).get(official.names_key)
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise DataError(f"{meta}: {official.names_key.decode()} is not a list of names; download the archive again")
    train = [_decode_batch(f"{where}/{name}", files[name], official.labels_key) for name in official.train]
    x_test, y_test = _decode_batch(f"{where}/{official.test}", files[official.test], official.labels_key)
    checked = [hashlib.sha256(files[name]).hexdigest() == digest for name, digest in official.sha256.items()]
    return RawData(
        tuple(name.decode() if isinstance(name, bytes) else name for name in names),
        np.concatenate([x for x, _ in train]),
        np.concatenate([y for _, y in train]),
        x_test,
        y_test,
        official.name if checked and all(checked) else None,
    )


def _decode_batch(where: str, data: bytes, labels_key: bytes) -> tuple[Images, Labels]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of one batch file, which stores planes [N, 3 * 32 * 32]."""
    batch = unpickle_dict(where, data)
    array, labels = batch.get(b"data"), batch.get(labels_key)
    try:
        _, shape, dtype, is_fortran_order, pixels = array.state  # type: ignore[union-attr]  # no array: an error too
        if dtype.name not in (b"u1", "u1") or is_fortran_order or not isinstance(pixels, bytes) or shape[1:] != (3072,):
            raise ValueError("no uint8 [N, 3072]")
        images = np.frombuffer(pixels, np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
    except Exception as error:  # the state is untrusted: any of its parts may have any type
        raise DataError(f"{where}: data is not uint8 [N, 3072] in rows ({error}); download it again") from error
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 1 << 31 for label in labels):
        raise DataError(f"{where}: {labels_key.decode()} is not a list of small integers; download it again")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; download it again")
    return images, np.array(labels, np.int64)


def is_cifar10(x_train: Images, y_train: Labels, x_test: Images, y_test: Labels) -> bool:
    """Whether both splits hold exactly the images and labels of CIFAR-10, in any order."""
    splits = {"train": (x_train, y_train), "test": (x_test, y_test)}
    if any(len(labels) != CIFAR10_CONTENT[name][0] for name, (_, labels) in splits.items()):
        return False  # saves hashing 60,000 images of other sets
    return all(content_digest(*splits[name]) == digest for name, (_, digest) in CIFAR10_CONTENT.items())


def content_digest(images: Images, labels: Labels) -> str:
    """The SHA-256 over the sorted SHA-256 digests of each image's pixels and label: the same in every order.

    images: uint8 [N, 32, 32, 3], C-contiguous. labels: int64 [N], hashed as 8 bytes, little-endian.
    """
    pairs = zip(images, labels.astype("<i8"), strict=True)
    digests = sorted(hashlib.sha256(image.tobytes() + label.tobytes()).digest() for image, label in pairs)
    return hashlib.sha256(b"".join(digests)).hexdigest()
