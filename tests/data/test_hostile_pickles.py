"""Tests of pickles made to run code or to exhaust memory: each must end in a one-line error and do nothing else."""

from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import assert_refused, in_official_folder, make_official_files, write_folder, write_tar

from fastcifar.data import pickles
from fastcifar.data.messages import DataError


class Calls:
    """Its pickle asks the reader to call `function` with `arguments`."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write_set_with_batch(tmp_path: Path, batch: bytes) -> Path:
    return write_folder(tmp_path / "set", in_official_folder(make_official_files(2) | {"data_batch_1": batch}))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Calls(os.system, f"touch {mark}"),
        lambda mark: Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
        lambda mark: Calls(builtins.getattr, "x", "upper"),
        lambda mark: Calls(np.fromfile, "/etc/passwd"),
    ],
)
def test_a_malicious_pickle_is_not_executed(tmp_path, protocol, call):
    mark = tmp_path / "mark"
    batch = pickle.dumps({b"data": call(mark), b"labels": [0]}, protocol)
    assert_refused(write_set_with_batch(tmp_path, batch), "data_batch_1")
    assert_refused(
        write_tar(tmp_path / "a.tar", in_official_folder(make_official_files(2) | {"data_batch_1": batch})),
        "data_batch_1",
    )
    assert not mark.exists()


@pytest.mark.parametrize(
    "batch",
    [
        b"cos\nsystem\n(S'touch mark'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch mark\x85R.",  # STACK_GLOBAL
        b"(S'touch mark'\nios\nsystem\n.",  # INST
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02c_codecs\ndecode\n.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two billion entries
        b"\x80\x02T\xff\xff\xff\x7fab.",  # a string that claims 2 GiB
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray that claims 1 TiB
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"\x85" * 100_000 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b".",
        b"",
    ],
)
def test_malformed_pickles_end_in_one_line_and_little_memory(tmp_path, batch):
    assert_refused(write_set_with_batch(tmp_path, batch), "data_batch_1")
    assert not Path("mark").exists()


@pytest.mark.parametrize("protocol", [0, 1, 4, 5])
def test_instructions_that_the_published_files_do_not_use_are_refused(tmp_path, protocol):
    """The batch is whole and harmless: the list of instructions alone refuses it, as the message says."""
    whole = make_official_files(2)["data_batch_1"]
    assert pickles.unpickle_dict("x", whole)[b"labels"] == [0, 1]
    again = pickle.dumps(pickle.loads(whole), protocol)
    assert pickle.loads(again).keys() == pickle.loads(whole).keys()
    assert_refused(write_set_with_batch(tmp_path, again), "data_batch_1", "holds the pickle instruction")


@pytest.mark.parametrize(
    ("batch", "instruction"),
    [
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x00.", "BYTEARRAY8"),
        (b"\x80\x02}0].", "POP"),
        (b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "STACK_GLOBAL"),
        (b"(S'x'\nios\nsystem\n.", "STRING"),
        (b"\x80\x02}P1\n.", "PERSID"),
        (b"\x80\x02)\x81.", "NEWOBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ],
)
def test_an_instruction_is_named_before_anything_is_loaded(monkeypatch, batch, instruction):
    monkeypatch.setattr(pickles, "_RestrictedUnpickler", lambda *_, **__: pytest.fail("the pickle is loaded"))
    with pytest.raises(DataError, match=f"holds the pickle instruction {instruction}, which"):
        pickles.unpickle_dict("x", batch)


def test_a_key_is_never_a_tuple_of_tuples():
    """Its hash takes twice as long for each of 60 levels."""
    nested = b"\x80\x02})q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"h\x3cNs."
    with pytest.raises(DataError, match="keys are neither texts nor numbers"):
        pickles.unpickle_dict("x", nested)
    with pytest.raises(DataError, match="keys are neither texts nor numbers"):
        pickles.unpickle_dict("x", b"\x80\x02}(K\x01N))Nu.")
    assert pickles.unpickle_dict("x", b"\x80\x02}(K\x01NU\x01aNu.") == {1: None, b"a": None}


def test_a_memo_has_a_limit():
    """pickle allocates the memo up to its largest index, 16 bytes for each: a few bytes of file could take 64 GiB."""

    def dictionary_at(index: int) -> bytes:
        return b"\x80\x02}r" + index.to_bytes(4, "little") + b"."

    assert pickles.unpickle_dict("x", dictionary_at(1 << 20)) == {}
    for index in ((1 << 20) + 1, 1 << 22):
        with pytest.raises(DataError, match="holds the pickle instruction LONG_BINPUT"):
            pickles.unpickle_dict("x", dictionary_at(index))


def test_the_names_that_a_pickle_may_ask_for():
    """The list grows only by decision, and each name leads to a replacement defined in the same module."""
    assert sorted(f"{module}.{name}" for module, name in pickles._REPLACEMENTS) == [
        "_codecs.encode",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
    ]
    assert all(item.__module__ == pickles.__name__ for item in pickles._REPLACEMENTS.values())
