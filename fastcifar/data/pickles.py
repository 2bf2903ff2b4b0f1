"""Reads pickles from untrusted files without running any code that they ask for.

The official files of CIFAR-10 and CIFAR-100 are pickles. Only the instructions and names that those files use are
allowed, and each allowed name leads to a harmless replacement defined here. The published files take the same path as
any others, so that one path is tested.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

from fastcifar.data.messages import DataError

_MAX_MEMO_INDEX = 1 << 20  # pickle allocates the memo up to its largest index: 2^32 would take 64 GiB


class PickledArray:
    """Replaces a pickled NumPy array: stores the pickled state and builds no array."""

    state: Any = None
    """(version, shape, dtype, is_fortran_order, pixels as bytes) of a well-formed array."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledDtype:
    """Replaces a pickled NumPy dtype: stores its name, such as "u1"."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


_REPLACEMENTS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: PickledArray(),
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # how Python 3 writes bytes in protocol 2
}
_ALLOWED_OPCODES = frozenset({
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
})  # fmt: skip


_UNPICKLER: Any = pickle._Unpickler


class _RestrictedUnpickler(_UNPICKLER):  # type: ignore[misc]
    """The unpickler in Python: that in C hashes any key, and to hash a tuple of tuples may take for ever."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _REPLACEMENTS:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no data set needs: it may be malicious")
        return _REPLACEMENTS[module, name]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch: ClassVar[Any] = {
        **_UNPICKLER.dispatch, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
    }  # fmt: skip


def _check_keys(keys: list[Any]) -> None:
    if not all(isinstance(key, (str, bytes, int)) for key in keys):
        raise pickle.UnpicklingError("holds a dictionary whose keys are neither texts nor numbers")


def unpickle_dict(where: str, data: bytes) -> dict[Any, Any]:
    """The pickled dictionary, str keys encoded to bytes, arrays as PickledArray.

    `where` names the file in messages. Raises DataError if the data is no pickled dictionary or uses an instruction
    or a name that is not allowed.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):  # before loading, because some opcodes allocate memory
            is_huge_index = opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_MEMO_INDEX
            if opcode.name not in _ALLOWED_OPCODES or is_huge_index:
                raise pickle.UnpicklingError(f"holds the pickle instruction {opcode.name}, which no data set needs")
        value = _RestrictedUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # malformed pickles raise almost any exception
        raise DataError(f"{where}: not an official CIFAR file ({error}); download it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: not an official CIFAR file (no dictionary); download it again")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
