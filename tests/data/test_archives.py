"""Tests of reading damaged and badly arranged tars. Malicious ones are in test_hostile_archives.py."""

from __future__ import annotations

import io
import tarfile

import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import assert_refused, encode_image, make_image_files, random_images, write_tar


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_truncated_archive(tmp_path, mode, share):
    path = write_tar(tmp_path / "a.tar", make_image_files(), mode)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert_refused(path, "a.tar")


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", make_image_files())
    content = bytearray(path.read_bytes())
    at = content.index(b"test/dog/01.png")
    content[at] ^= 1
    path.write_bytes(content)
    assert_refused(path, "damaged or cut off")


def test_a_flipped_bit_in_compressed_pixels_is_found(tmp_path):
    """The bytes after the last header are not parsed: only the checksum of the compressor shows the damage."""
    for mode in ("w:gz", "w:xz"):
        path = write_tar(tmp_path / "a.tar", make_image_files(), mode)
        content = bytearray(path.read_bytes())
        content[-10] ^= 1  # in the checksum itself
        path.write_bytes(content)
        assert_refused(path, "a.tar")


def test_a_file_twice_in_a_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", make_image_files())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("train/cat/00.png")
        content = encode_image(random_images(1)[0])
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    assert_refused(path, "twice")


def test_images_outside_the_class_folders_and_two_sets_in_one_tar(tmp_path):
    picture = encode_image(random_images(1)[0])
    assert_refused(
        write_tar(tmp_path / "a.tar", make_image_files() | {"logo.png": picture}), "logo.png", "not in train"
    )
    assert_refused(
        write_tar(tmp_path / "b.tar", make_image_files() | {"b/train/cat/0.png": picture}), "more than one folder"
    )
