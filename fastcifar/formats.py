"""Contents of files nobody vouches for -> checked arrays: the official pickled batches and .npz.

Whatever is wrong ends in a DataError of one line, and nothing in a file is executed: pickles are admitted opcode by
opcode and only into stand-ins of our own (the official archive too, so there is one path to test), .npz without
objects.

Letters: N images of H = W = 32 pixels, K classes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OFFICIAL_FOLDER = "cifar-10-batches-py"
OFFICIAL_MD5 = {  # as published with the data set and in torchvision.datasets.CIFAR10
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
MAX_TOTAL = 4 << 30  # bytes of a whole data set, unpacked


class DataError(ValueError):
    """Bad or missing data. The message is one printable line: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in message))


class Raw(NamedTuple):
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] in 0..K-1; after `check`, with training images of each class."""

    classes: tuple[str, ...]
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    official: bool = False  # the seven files are those published, by checksum


def check(path: Path, raw: Raw) -> Raw:
    """What every source must hold, whatever its format."""
    k = len(raw.classes)
    if len(set(raw.classes)) != k or not all(name and name.isprintable() for name in raw.classes):
        raise DataError(f"{path}: class names must be printable, not empty and different, not {raw.classes!r}")
    for split, x, y in (("train", raw.x_train, raw.y_train), ("test", raw.x_test, raw.y_test)):
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (32, 32, 3):
            raise DataError(f"{path}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [N, 32, 32, 3]")
        if y.ndim != 1 or len(x) != len(y) or not len(y):
            raise DataError(f"{path}: {split} has {len(x)} images and {len(y)} labels; expected as many, and some")
        if y.min() < 0 or y.max() >= k:
            raise DataError(f"{path}: a {split} label is {y.min() if y.min() < 0 else y.max()}; expected 0..{k - 1}")
    counts = np.bincount(raw.y_train, minlength=k)
    if not counts.all():
        raise DataError(f"{path}: class {raw.classes[int(counts.argmin())]!r} has no training images; add some")
    return raw._replace(x_train=np.ascontiguousarray(raw.x_train), x_test=np.ascontiguousarray(raw.x_test))


# The official batches


class _Array:
    """Stands in for a pickled numpy array: keeps its state, builds nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype:
    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # how Python 3 writes bytes in protocol 2
}
_OPCODES = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "GLOBAL",
        "REDUCE",
        "BUILD",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINUNICODE",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
    ]
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise DataError(f"asks for {module}.{name}, which no data set needs: it may be malicious")
        return _STAND_INS[module, name]


def _unpickle(where: str, data: bytes) -> dict[Any, Any]:
    """A dict of plain values. Opcodes are looked at first: a memo index of 2^32, say, would take 64 GiB to load."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > 1 << 20):
                raise DataError(f"holds the pickle instruction {opcode.name}, which no data set needs")
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:
        raise DataError(f"{where}: not an official CIFAR-10 file ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: not an official CIFAR-10 file (no dictionary); fetch it again")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}


def official(where: Path, files: dict[str, bytes]) -> Raw:
    missing = [name for name in OFFICIAL_MD5 if name not in files]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}; fetch the archive again")
    names = _unpickle(f"{where}/batches.meta", files["batches.meta"]).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise DataError(f"{where}/batches.meta: label_names is not a list of names; fetch the archive again")
    parts = {name: _batch(f"{where}/{name}", files[name]) for name in OFFICIAL_MD5 if name != "batches.meta"}
    x_test, y_test = parts.pop("test_batch")
    return Raw(
        tuple(name.decode() if isinstance(name, bytes) else name for name in names),
        np.concatenate([x for x, _ in parts.values()]),
        np.concatenate([y for _, y in parts.values()]),
        x_test,
        y_test,
        all(hashlib.md5(files[name], usedforsecurity=False).hexdigest() == md5 for name, md5 in OFFICIAL_MD5.items()),
    )


def _batch(where: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 32, 32, 3] and labels int64 [n] of one batch file (stored as planes [n, 3072])."""
    batch = _unpickle(where, data)
    array, labels = batch.get(b"data"), batch.get(b"labels")
    try:
        _, shape, dtype, fortran, pixels = array.state  # type: ignore[union-attr]
        if dtype.name not in (b"u1", "u1") or fortran or not isinstance(pixels, bytes) or shape[1:] != (3072,):
            raise ValueError("no uint8 [n, 3072]")
        images = np.frombuffer(pixels, np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
    except Exception as error:
        raise DataError(f"{where}: data is not uint8 [n, 3072] in rows ({error}); fetch it again") from error
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 1 << 31 for label in labels):
        raise DataError(f"{where}: labels is not a list of small integers; fetch it again")
    if len(labels) != len(images):
        raise DataError(f"{where}: {len(images)} images but {len(labels)} labels; fetch it again")
    return images, np.array(labels, np.int64)


# Arrays


def npz(path: Path) -> Raw:
    wanted = ("x_train", "y_train", "x_test", "y_test")
    with np.load(path, allow_pickle=False) as file:
        if sum(info.file_size for info in file.zip.infolist()) > MAX_TOTAL:
            raise DataError(f"{path}: unpacks to more than {MAX_TOTAL >> 30} GiB; it is no data set for this program")
        missing = [name for name in wanted if name not in file.files]
        if missing:
            raise DataError(f"{path}: lacks {', '.join(missing)}; save it with np.savez(path, {', '.join(wanted)})")
        arrays = {name: file[name] for name in (*wanted, "classes") if name in file.files}
    labels: dict[str, np.ndarray] = {}
    for name in ("y_train", "y_test"):
        y = arrays[name]
        if y.dtype.kind not in "iu" or not (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)):
            raise DataError(f"{path}: {name} is {y.dtype} {list(y.shape)}; expected integers [N] or [N, 1]")
        if y.size and not 0 <= int(y.min()) <= int(y.max()) < 1 << 31:
            raise DataError(f"{path}: a label in {name} is {y.min() if y.min() < 0 else y.max()}; expected 0..K-1")
        labels[name] = y.reshape(-1).astype(np.int64)
    count = 1 + int(labels["y_train"].max(initial=0))
    if count > max(1, len(labels["y_train"])):
        raise DataError(f"{path}: a label in y_train is {count - 1}; expected 0..K-1 with images of each class")
    names = arrays.get("classes", np.array([str(label) for label in range(count)]))
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: classes is {names.dtype} {list(names.shape)}; expected strings [K]")
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())
    return Raw(classes, arrays["x_train"], labels["y_train"], arrays["x_test"], labels["y_test"])
