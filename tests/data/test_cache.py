"""Tests of the cache: what is read from it, what happens when it is damaged or cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import encode_image, load_path, make_image_files, random_images, write_folder, write_npz, write_tar

from fastcifar.data import cache, sources

ROOT = Path(__file__).resolve().parents[2]


def cache_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_second_load_comes_from_the_cache(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", make_image_files())
    first = load_path(path)
    monkeypatch.setattr(sources, "read_source", lambda *_: pytest.fail("read the source again"))
    second = load_path(path)
    assert (first.digest, first.classes, first.mean, first.std) == (
        second.digest, second.classes, second.mean, second.std
    )  # fmt: skip
    assert np.array_equal(first.x_train, second.x_train) and np.array_equal(first.y_test, second.y_test)
    assert load_path(path.rename(tmp_path / "b.tar")).name == "b"  # the key is the content, the name is the file's


def test_a_changed_source_is_read_again(tmp_path):
    root = write_folder(tmp_path / "toy", make_image_files())
    first = load_path(root)
    (root / "train/cat/00.png").write_bytes(encode_image(random_images(1, 7)[0]))
    assert load_path(root).digest != first.digest


def test_class_folders_that_are_links_are_looked_into(tmp_path):
    store = write_folder(tmp_path / "store", make_image_files())
    root = tmp_path / "toy"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for folder in (store / split).iterdir():
            (root / split / folder.name).symlink_to(folder)
    first = load_path(root)
    (store / "train/cat/99.png").write_bytes(encode_image(random_images(1, 7)[0]))
    assert len(load_path(root).x_train) == len(first.x_train) + 1
    (root / "train/cat").unlink()
    (root / "train/cat").symlink_to(store / "train/dog")
    assert load_path(root).digest != first.digest


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "mean", "pixel", "longer", "garbage"])
def test_damaged_cache_is_reported_and_built_again(tmp_path, capfd, damage):
    path = write_npz(tmp_path / "a.npz")
    first = load_path(path)
    (cache_file,) = cache_files(tmp_path)
    content = bytearray(cache_file.read_bytes())
    if damage == "pixel":
        content[-5000] ^= 1
    elif damage == "header":
        content[80] ^= 1
    elif damage == "mean":  # another number in the same place, of which the digest of the arrays knows nothing
        digit = content.index(b"], [0.") + len("], [0.")
        content[digit] = ord("9") if content[digit] != ord("9") else ord("8")
    changed = {"cut": content[:-9], "empty": b"", "longer": content + b"x", "garbage": b"\xff" * 999}
    cache_file.write_bytes(changed.get(damage, content))
    assert load_path(path).digest == first.digest
    error = capfd.readouterr().err
    assert "damaged" in error and error.count("\n") == 1
    assert load_path(path).digest == first.digest and capfd.readouterr().err == ""


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "file"))
    assert len(load_path(write_npz(tmp_path / "a.npz")).x_train) == 12
    assert "going on without it" in capfd.readouterr().err


def test_full_disk_while_writing_the_cache_is_a_warning_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    def write_to_full_disk(file, dataset):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_cache", write_to_full_disk)
    assert len(load_path(write_npz(tmp_path / "a.npz")).x_train) == 12
    assert "No space left" in capfd.readouterr().err and cache_files(tmp_path) == []


def test_two_processes_at_once_both_succeed_and_the_cache_is_whole(tmp_path, capfd):
    path = write_tar(tmp_path / "a.tar", make_image_files(n_train=50))
    code = "import sys; from fastcifar.data.load import load; print(load(sys.argv[1]).digest)"
    command = [sys.executable, "-c", code, str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(digests) == 1
    assert len(cache_files(tmp_path)) == 1
    capfd.readouterr()
    assert load_path(path).digest in digests and capfd.readouterr().err == ""


def test_cache_folder_from_argument_then_environment(tmp_path, monkeypatch):
    assert cache.cache_folder("/x") == Path("/x")
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FASTCIFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_folder() == Path("/xdg/fastcifar")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "fastcifar"
