"""Tests of where `load` finds CIFAR-10, what it does without it, and how data sets are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import (
    declare_published,
    in_official_folder,
    load_path,
    make_official_files,
    serve_download,
    write_folder,
    write_npz,
    write_tar,
)

import fastcifar
from fastcifar.data.load import load
from fastcifar.data.messages import DataError
from fastcifar.data.official import CIFAR10

ROOT = Path(__file__).resolve().parents[2]


def test_cifar10_from_the_data_folder_then_from_the_cache(tmp_path, monkeypatch):
    files = make_official_files()
    declare_published(monkeypatch, files)
    root = write_folder(tmp_path / "d", in_official_folder(files))
    monkeypatch.setenv("FASTCIFAR_DATA", str(root))
    first = load("auto", progress=False)
    assert first.name == "cifar10" and len(first.x_train) == 100
    monkeypatch.delenv("FASTCIFAR_DATA")
    assert load("cifar10", progress=False).digest == first.digest


def test_cifar10_from_the_archive_in_the_working_folder(tmp_path, monkeypatch):
    files = make_official_files()
    declare_published(monkeypatch, files)
    Path("data").mkdir()
    write_tar(Path("data") / "cifar-10-python.tar.gz", in_official_folder(files), "w:gz")
    assert load("cifar10", progress=False).name == "cifar10"


def test_files_that_are_not_the_published_ones_are_not_taken_for_cifar10(tmp_path, monkeypatch):
    write_folder(Path("data"), in_official_folder(make_official_files()))
    for source in ("auto", "cifar10"):
        with pytest.raises(DataError, match="not the published CIFAR-10"):
            load(source, progress=False)


def test_a_download_is_decoded_and_stored(tmp_path, monkeypatch):
    files = make_official_files()
    declare_published(monkeypatch, files)

    asked = serve_download(monkeypatch, in_official_folder(files))
    assert load("auto", progress=False).name == "cifar10" and asked == [CIFAR10]
    assert (tmp_path / "cache" / "cifar-10-python.tar.gz").exists()


def test_missing_cifar10_is_an_error_that_gives_url_and_path(tmp_path):
    with pytest.raises(DataError) as caught:
        load("cifar10", progress=False)
    assert CIFAR10.url in str(caught.value) and str(tmp_path / "cache" / "cifar-10-python.tar.gz") in str(caught.value)


def test_auto_without_network_is_synthetic_and_warns(capfd):
    dataset = load(smoke=True, progress=False)
    assert dataset.name == "synthetic" and len(dataset.x_train) == 2_000 and len(dataset.x_test) == 400
    assert "SYNTHETIC" in capfd.readouterr().err


def test_auto_without_network_is_an_error_where_no_other_images_will_do(tmp_path):
    with pytest.raises(DataError, match=r'downloaded.*or ask for the built-in synthetic images with data="syn'):
        load(or_synthetic=False, progress=False)


@pytest.mark.parametrize("data", [None, "auto"])
def test_python_does_not_train_or_measure_on_synthetic_images_that_nobody_asked_for(data, tiny_network):
    with pytest.raises(ValueError, match='ask for the built-in synthetic images with data="synthetic"'):
        fastcifar.train("swa30", data=data, epochs=1, subset=20)
    with pytest.raises(ValueError, match='ask for the built-in synthetic images with data="synthetic"'):
        fastcifar.evaluate(None, "auto")


def test_user_files_are_not_named_like_the_official_set(tmp_path):
    assert load_path(write_npz(tmp_path / "cifar10.npz")).name == "cifar10-custom"


def test_smoke_takes_a_small_set_whole(tmp_path):
    assert len(load_path(write_npz(tmp_path / "a.npz"), smoke=True).x_train) == 12
    assert len(load_path(tmp_path / "a.npz", smoke=True, subset=6).x_train) == 6


def test_smoke_takes_as_much_of_a_large_subset_as_there_is(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    assert load_path(path, smoke=True, subset=5_000).digest == load_path(path, subset=12).digest
    with pytest.raises(DataError, match="has 12"):
        load_path(path, subset=5_000)


@pytest.mark.parametrize("subset", [-5, 0, 9])
def test_subset_below_one_image_of_each_class_is_refused(subset):
    with pytest.raises(DataError, match="at least 10"):
        load("synthetic", subset=subset, progress=False)


def test_importing_data_imports_neither_torch_nor_pil():
    code = (
        "import sys, fastcifar.data.load, fastcifar.files;"
        "print([name for name in ('torch', 'torchvision', 'PIL', 'rich') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
