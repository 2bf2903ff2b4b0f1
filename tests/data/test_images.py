"""Tests of reading image folders and tars of images: decoding, order, classes, and messages on faults."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from PIL import Image
from tiny_sets import assert_refused, encode_image, load_path, make_image_files, random_images, write_folder, write_tar


def test_image_folder_and_tars_of_it_agree(tmp_path):
    files = make_image_files()
    folder = load_path(write_folder(tmp_path / "toy", files))
    assert folder.name == "toy" and folder.classes == ("cat", "dog")
    assert np.array_equal(folder.x_train, random_images(10)[:6]) and list(folder.y_train) == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(folder.x_test, random_images(10)[6:]) and list(folder.y_test) == [0, 0, 1, 1]
    backwards = dict(reversed({f"top/{name}": content for name, content in files.items()}.items()))
    dotted = {f"./{name}": content for name, content in files.items()}
    for name, content, mode in (("a.tar", files, "w"), ("b.tar.xz", backwards, "w:xz"), ("c.tgz", dotted, "w:gz")):
        tar = load_path(write_tar(tmp_path / name, content, mode))
        assert tar.digest == folder.digest and tar.name == name[0]


def test_jpeg_grey_palette_and_alpha_images_become_rgb(tmp_path):
    image = Image.fromarray(random_images(1)[0])
    files = make_image_files()
    for i, mode in enumerate(("L", "P", "RGBA", "1")):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG")
        files[f"train/cat/x{i}.PNG"] = buffer.getvalue()
    files["train/dog/x.jpeg"] = encode_image(random_images(1)[0], "JPEG", quality=90)
    dataset = load_path(write_folder(tmp_path / "toy", files))
    assert len(dataset.x_train) == 11
    expected = np.asarray(Image.open(io.BytesIO(files["train/dog/x.jpeg"])))
    assert np.array_equal(dataset.x_train[-1], expected)


def test_hidden_and_other_files_are_ignored(tmp_path):
    files = make_image_files() | {
        "train/cat/._00.png": b"mac",
        "train/cat/notes.txt": b"",
        "readme.md": b"",
        ".x/y.png": b"",
    }
    assert len(load_path(write_folder(tmp_path / "a", files)).x_train) == 6
    assert len(load_path(write_tar(tmp_path / "a.tar", files)).x_train) == 6


def test_webp_and_bmp_are_read_and_other_folders_are_named(tmp_path, capfd):
    pixels = random_images(1, 3)[0]
    files = make_image_files()
    for kind in ("webp", "bmp"):
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, kind, **({"lossless": True} if kind == "webp" else {}))
        files[f"train/cat/z.{kind}"] = encoded.getvalue()
    files["val/cat/00.png"] = encode_image(pixels)
    data = load_path(write_folder(tmp_path / "a", files))
    assert len(data.x_train) == 8 and (data.x_train == pixels).all((1, 2, 3)).sum() == 2
    assert "only train and test are read, not val" in capfd.readouterr().err


def test_bad_image_is_named(tmp_path):
    for bad in (
        b"",
        b"not an image",
        encode_image(random_images(1)[0])[:-40],
        encode_image(random_images(1)[0], "GIF"),
    ):
        files = make_image_files() | {"test/dog/01.png": bad}
        assert_refused(write_folder(tmp_path / "toy", files), "test/dog/01.png", "cannot be read as an image")
        assert_refused(write_tar(tmp_path / "toy.tar", files), "test/dog/01.png", "cannot be read as an image")


def test_image_of_another_size_is_named_with_what_was_expected(tmp_path):
    files = make_image_files() | {"train/cat/01.png": encode_image(np.zeros((20, 30, 3), np.uint8))}
    assert_refused(write_folder(tmp_path / "toy", files), "train/cat/01.png", "30x20 pixels; expected 24 to 96")


def test_empty_class_folder(tmp_path):
    root = write_folder(tmp_path / "toy", make_image_files())
    (root / "train" / "eel").mkdir()
    assert_refused(root, "train/eel", "no images")
    eel = tarfile.TarInfo("train/eel")
    eel.type = tarfile.DIRTYPE
    assert_refused(write_tar(tmp_path / "toy.tar", make_image_files(), extra=(eel,)), "train/eel", "no images")


def test_classes_that_differ_between_train_and_test(tmp_path):
    files = make_image_files() | {"train/eel/0.png": encode_image(random_images(1)[0])}
    assert_refused(write_folder(tmp_path / "toy", files), "train and test differ", "eel")


def test_train_without_test(tmp_path):
    assert_refused(write_folder(tmp_path / "toy", make_image_files(n_test=0)), "test has 0 images", "test_split 0.1")
