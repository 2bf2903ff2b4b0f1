"""Files made to do harm, and files damaged at random: each ends in a data set or in one line, and does nothing else.

FASTCIFAR_FUZZ_EXAMPLES sets how many damaged files each format gets (25; a thorough run takes 1000).
"""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from mutation import damaged, edits, many
from test_data import (
    alone,  # noqa: F401  the fixture that keeps tests away from the user's files
    encoded,
    image_files,
    in_official_folder,
    official_files,
    pixels,
    read,
    refuse,
    write_folder,
    write_npz,
    write_tar,
)

from fastcifar import formats, sources
from fastcifar.data import DataError, Dataset

# Pickles


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def with_batch(tmp_path: Path, batch: bytes) -> Path:
    return write_folder(tmp_path / "set", in_official_folder(official_files(2) | {"data_batch_1": batch}))


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
    refuse(with_batch(tmp_path, batch), "data_batch_1")
    refuse(
        write_tar(tmp_path / "a.tar", in_official_folder(official_files(2) | {"data_batch_1": batch})), "data_batch_1"
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
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two milliard entries
        b"\x80\x02T\xff\xff\xff\x7fab.",  # a string that claims 2 GiB
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray that claims 1 TiB
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"\x85" * 100_000 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b".",
        b"",
    ],
)
def test_handmade_pickles_end_in_one_line_and_little_memory(tmp_path, batch):
    refuse(with_batch(tmp_path, batch), "data_batch_1")
    assert not Path("mark").exists()


def test_the_names_that_a_pickle_may_ask_for():
    """A new one is a decision, and none leads to anything but a stand-in."""
    assert sorted(f"{module}.{name}" for module, name in formats._STAND_INS) == [
        "_codecs.encode",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
    ]
    assert all(item.__module__ == formats.__name__ for item in formats._STAND_INS.values())


# Archives


@pytest.mark.parametrize("name", ["../x.png", "train/cat/../../../x.png", "/tmp/fastcifar-x.png", "a/../../etc/passwd"])
def test_unsafe_names_in_a_tar_are_refused(tmp_path, name):
    refuse(write_tar(tmp_path / "a.tar", image_files() | {name: encoded(pixels(1)[0])}), "unsafe name")
    assert not Path("/tmp/fastcifar-x.png").exists() and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("train/cat/99.png")
    link.type, link.linkname = kind, "/etc/passwd"
    refuse(write_tar(tmp_path / "a.tar", image_files(), extra=(link,)), "train/cat/99.png", "link or device")


@pytest.mark.parametrize("size", [2 << 20, 8 << 30, 1 << 62])
def test_huge_declared_sizes_are_refused_before_reading(tmp_path, size):
    claim = tarfile.TarInfo("train/cat/99.png")
    claim.size = size
    path = write_tar(tmp_path / "a.tar", image_files())
    with path.open("r+b") as file:  # in place of the end mark
        file.seek(tar_end(path))
        file.write(claim.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    refuse(path, "claims")


def tar_end(path: Path) -> int:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + -(-last.size // 512) * 512


def test_a_huge_name_record_is_refused(tmp_path):
    """A GNU long-name record is read whole by tarfile: its size is bounded by ours."""
    record = tarfile.TarInfo("././@LongLink")
    record.type, record.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    (tmp_path / "a.tar").write_bytes(record.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096)
    refuse(tmp_path / "a.tar", "64 MiB")


def test_a_compressed_bomb_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_TOTAL", 1 << 20)
    filler = {f"filler{i}": bytes(1 << 20) for i in range(3)}
    refuse(write_tar(tmp_path / "a.tar.gz", filler | image_files(), "w:gz"), "in all")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_MAX_FILES", 5)
    refuse(write_tar(tmp_path / "a.tar", image_files()), "more than 5 files")


def test_a_file_beyond_the_limit_in_a_folder(tmp_path):
    refuse(write_folder(tmp_path / "toy", image_files() | {"train/cat/big.png": bytes(2 << 20)}), "big.png", "1 MiB")


def png(width: int, height: int, *chunks: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (11_000, 11_000), (2**31 - 1, 2**31 - 1), (0, 0)])
def test_a_decompression_bomb_in_a_png_header(tmp_path, size, capfd):
    refuse(write_folder(tmp_path / "toy", image_files() | {"train/cat/bomb.png": png(*size)}), "train/cat/bomb.png")
    assert capfd.readouterr().err == ""  # PIL's own warning would be a second line


def test_an_npz_that_claims_a_huge_array(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=None)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }" % 10**12
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refuse(path, "a.npz")


def test_names_cannot_reach_the_terminal_or_add_lines(tmp_path):
    bad = "train/cat/\x1b[2J\nerror: fake.png"
    refuse(write_tar(tmp_path / "a.tar", image_files() | {bad: b"x"}), "?[2J?error")


# Random damage


def tar_gz(root: Path) -> tuple[Path, Path]:
    path = write_tar(root / "a.tar.gz", in_official_folder(official_files(2, classes=("a", "b"))), "w:gz")
    return path, path


def batch_file(root: Path) -> tuple[Path, Path]:
    folder = write_folder(root / "set", in_official_folder(official_files(2, classes=("a", "b"))))
    return folder, folder / "cifar-10-batches-py" / "data_batch_2"


def image_tar(root: Path) -> tuple[Path, Path]:
    path = write_tar(root / "a.tar", image_files())
    return path, path


def image_of(kind: str):
    def make(root: Path) -> tuple[Path, Path]:
        folder = write_folder(root / "toy", image_files() | {f"train/cat/x.{kind}": encoded(pixels(1)[0], kind)})
        return folder, folder / "train" / "cat" / f"x.{kind}"

    return make


def npz(root: Path) -> tuple[Path, Path]:
    path = write_npz(root / "a.npz", classes=np.array(["a", "b", "c"]))
    return path, path


def cache_file(root: Path) -> tuple[Path, Path]:
    path = write_npz(root / "a.npz")
    read(path)
    (cached,) = Path(os.environ["FASTCIFAR_CACHE"]).iterdir()
    return path, cached


FORMATS = {
    "official tar.gz": tar_gz,
    "official batch": batch_file,
    "image tar": image_tar,
    "png": image_of("png"),
    "jpeg": image_of("jpeg"),
    "npz": npz,
    "cache": cache_file,
}
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")
executed: list[str] = []  # filled by the audit hook while `watching`
watching = False


def listen(event: str, arguments: tuple) -> None:
    if watching and event in WATCHED:
        executed.append(event)


sys.addaudithook(listen)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and "cache" not in p.relative_to(root).parts}


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_give_a_data_set_or_one_line(tmp_path, kind, capfd):
    source, victim = FORMATS[kind](tmp_path)
    original = victim.read_bytes()
    sound = read(source).digest if kind == "cache" else None

    @many
    @given(edits=edits)
    def one(edits):
        global watching
        victim.write_bytes(damaged(original, edits))
        before = tree(tmp_path)
        watching = True
        try:
            dataset = read(source)
            assert valid(dataset)
            assert sound in (None, dataset.digest)  # a damaged cache never gives other data
        except DataError as error:
            assert "\n" not in str(error) and str(error)
            assert kind != "cache"
        finally:
            watching = False
        assert tree(tmp_path) == before and not executed

    one()
    assert all(line.startswith("warning: ") for line in capfd.readouterr().err.splitlines())


def valid(dataset: Dataset) -> bool:
    k = len(dataset.classes)
    return all(
        x.dtype == np.uint8
        and x.shape == (len(y), 32, 32, 3)
        and x.flags.c_contiguous
        and y.dtype == np.int64
        and len(y)
        and 0 <= y.min() <= y.max() < k
        for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test))
    ) and bool(np.isfinite(dataset.mean + dataset.std).all() and min(dataset.std) > 0)
