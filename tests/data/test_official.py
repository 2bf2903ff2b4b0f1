"""Tests of reading the official batch files, from a folder and from an archive."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import (
    CIFAR10_CLASSES,
    assert_refused,
    declare_published,
    in_official_folder,
    load_path,
    make_cifar100_files,
    make_official_files,
    random_images,
    write_folder,
    write_tar,
)

from fastcifar.data.official import CIFAR100, decode_official


def test_official_folder_gives_images_labels_and_classes_in_order(tmp_path):
    root = write_folder(tmp_path / "somewhere", in_official_folder(make_official_files()))
    for path in (root, root / "cifar-10-batches-py"):
        dataset = load_path(path)
        assert dataset.classes == CIFAR10_CLASSES
        assert np.array_equal(dataset.x_train, np.concatenate([random_images(20, i) for i in range(5)]))
        assert np.array_equal(dataset.x_test, random_images(20, 5))
        assert np.array_equal(dataset.y_train, np.tile(np.arange(20) % 10, 5))
        assert dataset.x_train.dtype == np.uint8 and dataset.x_train.flags.c_contiguous
        assert dataset.y_train.dtype == dataset.y_test.dtype == np.int64
    assert dataset.name == "cifar-10-batches-py"  # not cifar10: these are not the published files


def test_one_file_with_another_digest_makes_cifar100_unpublished(tmp_path, monkeypatch):
    """CIFAR-10 is known by its content, which a set of images may have, too."""
    files = make_cifar100_files()
    assert decode_official(tmp_path, CIFAR100, files).published is None
    declare_published(monkeypatch, files, CIFAR100)
    assert decode_official(tmp_path, CIFAR100, files).published == "cifar100"
    for name in CIFAR100.sha256:
        other = {**files, name: pickle.dumps(pickle.loads(files[name]), 3)}  # the same content
        assert decode_official(tmp_path, CIFAR100, other).published is None, name


def test_a_batch_as_python_2_wrote_it_is_read(tmp_path):
    """Opcodes BINSTRING and GLOBAL numpy.core.multiarray, which Python 3 no longer writes."""
    n = 2
    raw = random_images(n).transpose(0, 3, 1, 2).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    batch = b"\x80\x02}q\x00(U\x04data" + array + b"U\x06labels]q\x06(K\x00K\x01eu."
    files = make_official_files(classes=("a", "b")) | {"data_batch_1": batch}
    dataset = load_path(write_folder(tmp_path / "set", in_official_folder(files)))
    assert np.array_equal(dataset.x_train[:2], random_images(2)) and list(dataset.y_train[:2]) == [0, 1]


@pytest.mark.parametrize("protocol", [2, 3])
def test_official_archive_of_any_compression(tmp_path, protocol):
    files = in_official_folder(
        {name: pickle.dumps(pickle.loads(c), protocol) for name, c in make_official_files().items()}
    )
    digests = set()
    for suffix, mode in ((".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz"), (".tar", "w")):
        digests.add(load_path(write_tar(tmp_path / f"a{suffix}", files, mode)).digest)
    assert len(digests) == 1


def test_official_by_checksum_is_named_cifar10(tmp_path, monkeypatch):
    files = make_official_files()
    declare_published(monkeypatch, files)
    assert load_path(write_tar(tmp_path / "set.tar", in_official_folder(files))).name == "cifar10"


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({b"labels": [0]}, ("data is not uint8",)),
        ({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}, ("data is not uint8",)),
        ({b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]}, ("data is not uint8",)),
        ({b"data": np.zeros((2, 3072), np.uint8)}, ("labels is not",)),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, "1"]}, ("labels is not",)),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, ("2 images but 1 labels",)),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}, ("train label is 10",)),
        ({b"data": np.array([{}] * 2, object), b"labels": [0, 1]}, ("data is not uint8",)),
        ([1, 2], ("no dictionary",)),
    ],
)
def test_official_batch_that_does_not_hold_images(tmp_path, batch, words):
    files = make_official_files() | {"data_batch_3": pickle.dumps(batch, 2)}
    assert_refused(write_folder(tmp_path / "set", in_official_folder(files)), *words)


def test_official_folder_with_a_file_missing(tmp_path):
    files = make_official_files()
    del files["data_batch_4"]
    assert_refused(write_folder(tmp_path / "set", in_official_folder(files)), "lacks data_batch_4")
    assert_refused(write_tar(tmp_path / "set.tar", in_official_folder(files)), "lacks data_batch_4")
