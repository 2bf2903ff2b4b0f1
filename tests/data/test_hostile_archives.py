"""Tests of archives and images made to do harm: unsafe names, links, huge sizes, decompression bombs."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import (
    assert_refused,
    encode_image,
    in_official_folder,
    load_path,
    make_image_files,
    make_official_files,
    make_png,
    random_images,
    write_folder,
    write_npz,
    write_tar,
)

from fastcifar.data import archives, checks
from fastcifar.data.messages import DataError


@pytest.mark.parametrize("name", ["../x.png", "train/cat/../../../x.png", "/tmp/fastcifar-x.png", "a/../../etc/passwd"])
def test_unsafe_names_in_a_tar_are_refused(tmp_path, name):
    assert_refused(
        write_tar(tmp_path / "a.tar", make_image_files() | {name: encode_image(random_images(1)[0])}), "unsafe name"
    )
    assert not Path("/tmp/fastcifar-x.png").exists() and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("train/cat/99.png")
    link.type, link.linkname = kind, "/etc/passwd"
    assert_refused(
        write_tar(tmp_path / "a.tar", make_image_files(), extra=(link,)), "train/cat/99.png", "link or device"
    )


@pytest.mark.parametrize("size", [2 << 20, 8 << 30, 1 << 62])
def test_huge_declared_sizes_are_refused_before_reading(tmp_path, size):
    claim = tarfile.TarInfo("train/cat/99.png")
    claim.size = size
    path = write_tar(tmp_path / "a.tar", make_image_files())
    with path.open("r+b") as file:  # in place of the end mark
        file.seek(tar_end(path))
        file.write(claim.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    assert_refused(path, "claims")


def test_a_size_below_zero_reads_nothing(tmp_path):
    """Numbers of a header may be binary, and signed. Below zero bytes are all bytes to a file."""
    claim = bytearray(tarfile.TarInfo("train/cat/99.png").tobuf(tarfile.GNU_FORMAT))
    claim[124:136] = b"\xff" * 12
    claim[148:156] = b" " * 8
    claim[148:156] = b"%06o\0 " % sum(claim)
    path = write_tar(tmp_path / "a.tar", make_image_files())
    with path.open("r+b") as file:
        file.seek(tar_end(path))
        file.write(claim + b"\0" * 1024)
    assert_refused(path, "a.tar")
    with pytest.raises(tarfile.ReadError):
        archives._LimitedStream(io.BytesIO(b"abc")).read(-1)


def tar_end(path: Path) -> int:
    """Offset behind the last member, where the end mark begins."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + -(-last.size // 512) * 512


def test_a_huge_name_record_is_refused(tmp_path):
    """A GNU long-name record is read whole by tarfile: its size must be limited, too."""
    record = tarfile.TarInfo("././@LongLink")
    record.type, record.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    (tmp_path / "a.tar").write_bytes(record.tobuf(tarfile.GNU_FORMAT) + b"x" * 4096)
    assert_refused(tmp_path / "a.tar", "192 MiB")


def test_a_compressed_bomb_ends_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MAX_DATASET_BYTES", 1 << 20)
    filler = {f"filler{i}": bytes(1 << 20) for i in range(3)}
    assert_refused(write_tar(tmp_path / "a.tar.gz", filler | make_image_files(), "w:gz"), "in total")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "MAX_FILES", 5)
    assert_refused(write_tar(tmp_path / "a.tar", make_image_files()), "more than 5 files")


def test_a_file_beyond_the_limit_in_a_folder(tmp_path):
    assert_refused(
        write_folder(tmp_path / "toy", make_image_files() | {"train/cat/big.png": bytes(2 << 20)}), "big.png", "1 MiB"
    )


@pytest.mark.parametrize("size", [(100_000, 100_000), (11_000, 11_000), (2**31 - 1, 2**31 - 1), (0, 0)])
def test_a_decompression_bomb_in_a_png_header(tmp_path, size, capfd):
    assert_refused(
        write_folder(tmp_path / "toy", make_image_files() | {"train/cat/bomb.png": make_png(*size)}),
        "train/cat/bomb.png",
    )
    assert capfd.readouterr().err == ""  # PIL's own warning would be a second line


@pytest.mark.parametrize("size", [(97, 32), (32, 23), (100, 100), (9_000, 9_000)])
def test_the_size_is_looked_at_before_the_pixels(tmp_path, size):
    """The pixels are cut off, which only decoding would notice."""
    files = make_image_files() | {"train/cat/cut.png": make_png(*size)}
    told = ("train/cat/cut.png", f"{size[0]}x{size[1]} pixels; expected 24 to 96")
    assert_refused(write_folder(tmp_path / "toy", files), *told)
    assert_refused(write_tar(tmp_path / "toy.tar", files), *told)


def test_an_npz_that_claims_a_huge_array(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=None)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 32, 32, 3), }" % 10**12
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert_refused(path, "a.npz")


def test_names_cannot_reach_the_terminal_or_add_lines(tmp_path):
    bad = "train/cat/\x1b[2J\nerror: fake.png"
    assert_refused(write_tar(tmp_path / "a.tar", make_image_files() | {bad: b"x"}), r"\x1b[2J\nerror")


# What is no file


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_refused_in_a_folder(tmp_path, make):
    """A named pipe would be waited for without an end, /dev/zero be read without one."""
    images = write_folder(tmp_path / "toy", make_image_files())
    make(images / "train/cat/99.png")
    assert_refused(images, "train/cat/99.png", "not a file but a folder, pipe or device")
    files = make_official_files(2)
    del files["data_batch_3"]
    official = write_folder(tmp_path / "set", in_official_folder(files))
    make(official / "cifar-10-batches-py/data_batch_3")
    assert_refused(official, "data_batch_3", "not a file but a folder, pipe or device")


def test_any_name_of_a_file_is_read(tmp_path):
    """A line break, an escape and a byte that is not UTF-8 are names as any other; messages have them as escapes."""
    plain, odd = make_image_files(), "train/cat/\udce9\n\x1b[2J.png"
    names = dict(zip(plain, [odd, *list(plain)[1:]], strict=True))
    files = {names[name]: content for name, content in plain.items()}
    digests = {load_path(write_folder(tmp_path / "odd", files)).digest,
               load_path(write_tar(tmp_path / "odd.tar", files)).digest}  # fmt: skip
    assert len(digests) == 1
    for path in (write_folder(tmp_path / "bad", files | {odd: b"x"}),
                 write_tar(tmp_path / "bad.tar", files | {odd: b"x"})):  # fmt: skip
        with pytest.raises(DataError, match=r"cat/\\udce9\\n\\x1b\[2J\.png: cannot be read as an image"):
            load_path(path)


def test_the_name_of_a_set_is_printable_text(tmp_path):
    """It goes into the record, the picture of the curves and the model file, all of them in UTF-8."""
    assert load_path(write_folder(tmp_path / "\udce9\n\x1b", make_image_files())).name == r"\udce9\n\x1b"
