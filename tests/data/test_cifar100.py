"""CIFAR-100: its official files as a folder, an archive and a download, and a training on all 100 classes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import (
    CIFAR100_CLASSES,
    CIFAR100_COLOURS,
    assert_refused,
    declare_published,
    in_official_folder,
    load_path,
    make_cifar100_files,
    make_official_files,
    serve_download,
    write_folder,
    write_tar,
)

import fastcifar
from fastcifar.cli import main as command
from fastcifar.data.errors import DataError
from fastcifar.data.load import load
from fastcifar.data.official import CIFAR10, CIFAR100


def in_folder(files):
    return in_official_folder(files, CIFAR100.folder)


@pytest.fixture
def published(monkeypatch):
    files = make_cifar100_files()
    declare_published(monkeypatch, files, CIFAR100)
    return files


def test_a_folder_and_an_archive_give_the_fine_labels_and_their_names(tmp_path):
    root = write_folder(tmp_path / "somewhere", in_folder(make_cifar100_files()))
    archive = write_tar(tmp_path / "a.tar.gz", in_folder(make_cifar100_files()), "w:gz")
    for path in (root, root / CIFAR100.folder, archive):
        dataset = load_path(path)
        assert dataset.classes == CIFAR100_CLASSES
        assert np.array_equal(dataset.y_train, np.arange(200) % 100) and dataset.x_train.shape == (200, 32, 32, 3)
        assert np.array_equal(dataset.x_test[:, 12, 20], CIFAR100_COLOURS) and len(dataset.y_test) == 100
        assert dataset.name != "cifar100"  # these are not the published files


def test_the_published_files_are_found_and_named_and_verified_each_time(tmp_path, published, monkeypatch):
    (tmp_path / "d").mkdir()
    write_tar(tmp_path / "d" / CIFAR100.archive, in_folder(published), "w:gz")
    monkeypatch.setenv("FASTCIFAR_DATA", str(tmp_path / "d"))
    first = load("cifar100", progress=False)
    assert first.name == "cifar100" == load_path(tmp_path / "d" / CIFAR100.archive).name
    assert load("cifar100", progress=False).digest == first.digest
    assert not list((tmp_path / "cache").glob("*"))  # decoded images could not be told from others
    monkeypatch.delenv("FASTCIFAR_DATA")
    with pytest.raises(DataError, match="CIFAR-100 was not found"):
        load("cifar100", progress=False)


def test_each_set_is_found_where_both_lie_in_one_folder(published, monkeypatch):
    ten = make_official_files()
    declare_published(monkeypatch, ten)
    write_folder(Path("data"), in_folder(published) | in_official_folder(ten))
    assert load("cifar100", progress=False).name == "cifar100" and load("cifar10", progress=False).name == "cifar10"


def test_a_download_is_decoded_and_stored(tmp_path, published, monkeypatch):
    asked = serve_download(monkeypatch, in_folder(published))
    assert load("cifar100", progress=False).name == "cifar100" and asked == [CIFAR100]
    assert (tmp_path / "cache" / "cifar-100-python.tar.gz").exists()


def test_without_files_and_network_url_and_path_are_told(tmp_path):
    with pytest.raises(DataError, match="CIFAR-100 was not found") as caught:
        load("cifar100", progress=False)
    assert CIFAR100.url in str(caught.value) and str(tmp_path / "cache" / CIFAR100.archive) in str(caught.value)


def test_files_that_are_not_the_published_ones_are_refused():
    write_folder(Path("data"), in_folder(make_cifar100_files()))
    with pytest.raises(DataError, match="not the published CIFAR-100"):
        load("cifar100", progress=False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test": None}, ("lacks test",)),
        ({"meta": pickle.dumps({b"label_names": [b"a"]}, 2)}, ("fine_label_names is not a list",)),
        ({"train": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}, 2)}, ("fine_labels is not",)),
    ],
)
def test_damaged_files_are_refused(tmp_path, changed, words):
    files = {name: content for name, content in (make_cifar100_files() | changed).items() if content is not None}
    assert_refused(write_folder(tmp_path / "set", in_folder(files)), *words)
    assert_refused(write_tar(tmp_path / "set.tar", in_folder(files)), *words)


def test_an_archive_of_both_sets_is_refused(tmp_path):
    both = in_folder(make_cifar100_files()) | in_official_folder(make_official_files())
    assert_refused(write_tar(tmp_path / "set.tar", both), "holds both cifar-10-batches-py and cifar-100-python")


def test_digests_and_addresses_are_those_of_torchvision():
    for ours, theirs in (
        (CIFAR10, torchvision.datasets.CIFAR10),
        (CIFAR100, torchvision.datasets.CIFAR100),
    ):
        files = (*(name for name, _ in [*theirs.train_list, *theirs.test_list]), theirs.meta["filename"])
        assert (ours.url, ours.archive, ours.archive_md5) == (theirs.url, theirs.filename, theirs.tgz_md5)
        assert (ours.folder, ours.files, ours.names_key.decode()) == (theirs.base_folder, files, theirs.meta["key"])


def test_an_epoch_on_100_classes_from_the_command_line_and_from_python(published, tiny_network, capfd):
    write_folder(Path("data"), in_folder(published))
    flags = ["--smoke", "--device", "cpu", "--scale", "small", "--batch-size", "20", "--out", "run"]
    assert command.train([*flags, "--data", "cifar100"]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (summary["dataset"], summary["n_train"], summary["n_test"]) == ("cifar100", 200, 100)
    model = fastcifar.load("run")
    images = load("cifar100", progress=False).x_test
    assert model.classes == CIFAR100_CLASSES and model.logits(images).shape == (100, 100)

    result = fastcifar.train(
        "swa30", data="cifar100", epochs=1, batch_size=20, device="cpu", scale="small", precision="fp32"
    )
    names, _ = result.model.predict(images[:3])
    assert result.summary["dataset"] == "cifar100" and set(names) <= set(CIFAR100_CLASSES)
    assert result.model.logits(images).shape == (100, 100)
