"""Decodes the official CIFAR-10 batch files (`cifar-10-batches-py`) to arrays.

The callers read the files from a folder or from the official archive; `pickles` unpickles them safely.

Letters: N images of H = W = 32 pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fastcifar.data.errors import DataError
from fastcifar.data.pickles import unpickle_dict
from fastcifar.data.raw import Images, Labels, RawData

OFFICIAL_FOLDER = "cifar-10-batches-py"
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""File name -> MD5 of its content, as published with the data set and in torchvision.datasets.CIFAR10."""


def decode_official(where: Path, files: dict[str, bytes]) -> RawData:
    """Returns the data set in the seven official files: images uint8 [N, 32, 32, 3], labels int64 [N].

    `files` maps a file's name to its content. Any files of this format are accepted; `is_official` of the result says
    whether they are the published ones. Raises DataError if one is missing or malformed.
    """
    missing = [name for name in OFFICIAL_MD5 if name not in files]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}; download the archive again")
    names = unpickle_dict(f"{where}/batches.meta", files["batches.meta"]).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise DataError(f"{where}/batches.meta: label_names is not a list of names; download the archive again")
    batches = {name: _decode_batch(f"{where}/{name}", files[name]) for name in OFFICIAL_MD5 if name != "batches.meta"}
    x_test, y_test = batches.pop("test_batch")
    return RawData(
        tuple(name.decode() if isinstance(name, bytes) else name for name in names),
        np.concatenate([x for x, _ in batches.values()]),
        np.concatenate([y for _, y in batches.values()]),
        x_test,
        y_test,
        all(hashlib.md5(files[name], usedforsecurity=False).hexdigest() == md5 for name, md5 in OFFICIAL_MD5.items()),
    )


def _decode_batch(where: str, data: bytes) -> tuple[Images, Labels]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of one batch file, which stores planes [N, 3 * 32 * 32]."""
    batch = unpickle_dict(where, data)
    array, labels = batch.get(b"data"), batch.get(b"labels")
    try:
        _, shape, dtype, is_fortran_order, pixels = array.state  # type: ignore[union-attr]  # no array: an error too
        if dtype.name not in (b"u1", "u1") or is_fortran_order or not isinstance(pixels, bytes) or shape[1:] != (3072,):
            raise ValueError("no uint8 [N, 3072]")
        images = np.frombuffer(pixels, np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
    except Exception as error:  # the state is untrusted: any of its parts may have any type
        raise DataError(f"{where}: data is not uint8 [N, 3072] in rows ({error}); download it again") from error
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 1 << 31 for label in labels):
        raise DataError(f"{where}: labels is not a list of small integers; download it again")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; download it again")
    return images, np.array(labels, np.int64)
