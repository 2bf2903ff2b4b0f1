"""Images of one's own: other sizes at every door, floats, channels first, names as labels, sets without a test."""

import json
import tarfile

import numpy as np
import pytest
from isolation import isolated  # noqa: F401  autouse: hides the user's cache, data folder and network
from tiny_sets import (
    assert_refused,
    encode_image,
    load_path,
    make_arrays,
    make_image_files,
    random_images,
    write_folder,
    write_npz,
    write_tar,
)

import fastcifar
from fastcifar.cli import main as command
from fastcifar.cli.predict import read_image
from fastcifar.data.messages import DataError
from fastcifar.data.pixels import to_rgb_32

from_arrays = fastcifar.Dataset.from_arrays


@pytest.mark.parametrize(("height", "width"), [(24, 24), (28, 28), (32, 48), (48, 64), (96, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_door_makes_the_same_pixels(tmp_path, height, width, channels):
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    data = encode_image(image[..., 0] if channels == 1 else image)
    files = make_image_files() | {"train/dog/x.png": data}
    (tmp_path / "x.png").write_bytes(data)
    one, labels = image[None].repeat(2, 0), np.array([0, 1])
    npz = {"x_train": one, "y_train": labels, "x_test": one, "y_test": labels}
    sets = [load_path(write_folder(tmp_path / "a", files)), load_path(write_tar(tmp_path / "a.tar", files)),
            load_path(write_npz(tmp_path / "a.npz", **npz)), from_arrays(one, labels, one, labels)]  # fmt: skip
    assert [s.resized for s in sets] == [1, 1, 4, 4]
    assert load_path(tmp_path / "a.tar").resized == 1  # from the cache
    expected = to_rgb_32(image[None])[0]
    assert expected.shape == (32, 32, 3) and len(np.unique(expected)) > 50
    for found in (*(s.x_train[-1] for s in sets), read_image(tmp_path / "x.png")):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [64, 96])
def test_a_larger_image_is_averaged_over_all_its_pixels(size):
    """Lines of one pixel become grey; picking pixels would give black and white."""
    lines = np.zeros((1, size, size, 3), np.uint8)
    lines[:, ::2] = 255
    assert np.abs(to_rgb_32(lines)[0, 2:-2].astype(int) - 127).max() <= 30
    smooth = np.broadcast_to(np.linspace(0, 255, size)[:, None, None], (size, size, 3)).astype(np.uint8)
    assert np.abs(np.diff(to_rgb_32(smooth[None])[0, 1:-1, 0, 0].astype(int)) - 8).max() <= 2


@pytest.mark.parametrize("size", [23, 97])
def test_other_sizes_are_refused_at_every_door(tmp_path, size):
    image = random_images(1)[0].repeat(4, 0).repeat(4, 1)[:size, :32]
    told = f"32x{size} pixels; expected 24 to 96"
    files = make_image_files() | {"train/dog/x.png": encode_image(image)}
    assert_refused(write_folder(tmp_path / "a", files), "train/dog/x.png", told)
    assert_refused(write_tar(tmp_path / "a.tar", files), "train/dog/x.png", told)
    assert_refused(write_npz(tmp_path / "a.npz", x_test=image[None].repeat(6, 0)), "x_test", told)
    with pytest.raises(DataError, match=told):
        to_rgb_32(image[None])


def test_floats_and_channels_first_are_those_of_uint8():
    whole = make_arrays()
    expected = from_arrays(*whole.values())
    first = {name: a.transpose(0, 3, 1, 2) if name[0] == "x" else a for name, a in whole.items()}
    assert from_arrays(*first.values()).digest == expected.digest
    for dtype in (np.float32, np.float64):
        floats = {name: (a / 255).astype(dtype) if name[0] == "x" else a for name, a in first.items()}
        assert from_arrays(*floats.values()).digest == expected.digest
    with pytest.raises(DataError, match=r"x_train: float64 from -1 to 1; expected uint8, or floats in \[0, 1\]: undo"):
        from_arrays(np.linspace(-1, 1, 12 * 3072).reshape(12, 32, 32, 3), *list(whole.values())[1:])


@pytest.mark.parametrize("kind", [np.array, list, lambda names: np.array(names, object)])
def test_names_as_labels_are_numbered_in_alphabetical_order(tmp_path, kind):
    arrays = make_arrays()
    names = {name: kind([("fox", "ape", "cow")[i] for i in a]) for name, a in arrays.items() if name[0] == "y"}
    dataset = from_arrays(*(arrays | names).values())
    assert dataset.classes == ("ape", "cow", "fox") and dataset.y_train[:4].tolist() == [2, 0, 1, 2]
    assert dataset.y_test.tolist() == [[2, 0, 1][i] for i in arrays["y_test"]]
    given = from_arrays(*(arrays | names).values(), classes=["fox", "ape", "cow"])
    assert given.classes == ("fox", "ape", "cow") and given.y_train.tolist() == arrays["y_train"].tolist()
    if kind is np.array:
        assert load_path(write_npz(tmp_path / "a.npz", **names)).digest == dataset.digest
    with pytest.raises(DataError, match="a label in y_test is 'owl'; expected one of ape, cow, fox"):
        from_arrays(*(arrays | names | {"y_test": np.array(["owl"] * 6)}).values())
    with pytest.raises(DataError, match=r"y_test is <U3 \[6\]; expected integers"):
        from_arrays(*(arrays | {"y_test": np.array(["fox"] * 6)}).values())


def flat_files(n: int = 10) -> dict[str, bytes]:
    return {name.removeprefix("train/"): data for name, data in make_image_files(n_train=n, n_test=0).items()}


def test_a_folder_of_classes_is_split_alike_each_time(tmp_path):
    folder = write_folder(tmp_path / "own", flat_files() | {"notes.txt": b""})
    assert_refused(folder, "test has 0 images", "take some of the training images with test_split 0.1")
    dataset = fastcifar.load_data(str(folder), test_split=0.2, progress=False)
    assert dataset.classes == ("cat", "dog") and dataset.name == "own"
    assert np.bincount(dataset.y_train).tolist() == [8, 8] and np.bincount(dataset.y_test).tolist() == [2, 2]
    together = {x.tobytes() for x in dataset.x_train} | {x.tobytes() for x in dataset.x_test}
    assert together == {x.tobytes() for x in random_images(20)}
    whole = load_path(
        write_folder(tmp_path / "b", {f"train/{name}": d for name, d in flat_files().items()}), test_split=0.2
    )
    assert whole.digest == dataset.digest == load_path(folder, test_split=0.2).digest
    assert len(load_path(folder, test_split=0.5).x_test) == 10  # a file of its own in the cache
    with pytest.raises(DataError, match=r"test_split 0\.01 takes 0 of the 10 images of class 'cat'"):
        load_path(folder, test_split=0.01)


@pytest.mark.parametrize("around", ["", "own/", "./", "./own/"])
def test_a_tar_of_classes_is_read_as_the_folder_is(tmp_path, around):
    folder = write_folder(tmp_path / "own", flat_files())
    for mode in ("w", "w:gz"):
        path = write_tar(tmp_path / "a.tar", {around + name: data for name, data in flat_files().items()}, mode)
        if mode == "w":
            assert_refused(path, "test has 0 images", "take some of the training images with test_split 0.1")
        assert load_path(path, test_split=0.2).digest == load_path(folder, test_split=0.2).digest


@pytest.mark.parametrize("around", ["", "own/"])
def test_a_tar_of_a_folder_has_entries_for_its_folders(tmp_path, around):
    write_folder(tmp_path / "b" / around, flat_files())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "b", arcname=".")
    (tmp_path / "b" / around / "empty").mkdir()
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.add(tmp_path / "b", arcname=".")
    assert_refused(tmp_path / "empty.tar", "no images in train/empty; add .png or .jpg files or remove the folder")
    assert load_path(tmp_path / "a.tar", test_split=0.2).classes == ("cat", "dog")


def test_classes_beside_a_split_or_in_two_folders_are_refused(tmp_path):
    flat, split, picture = flat_files(), make_image_files(), next(iter(flat_files().values()))
    for files, told in [
        (flat | split, "cat/00.png is not in train/<class>/ or test/<class>/, or in <class>/"),
        (split | flat, "cat/00.png is not in train/<class>/ or test/<class>/, or in <class>/"),
        (flat | {"logo.png": picture}, "logo.png is not in train"),
        (flat | {"a/b/c/0.png": picture}, "a/b/c/0.png is not in train"),
        (flat | {"own/cat/0.png": picture}, "has images in <class>/ and in own/<class>/; keep all classes in one"),
        ({"a/cat/0.png": picture, "b/dog/0.png": picture}, "has images in a/<class>/ and in b/<class>/"),
        (flat | {"cifar-10-batches-py/data_batch_1": b"x"}, "cat/00.png is not in train"),
    ]:
        assert_refused(write_tar(tmp_path / "a.tar", files), told)


def test_arrays_without_test_images_are_split_as_files_are(tmp_path):
    images, labels = make_arrays(30)["x_train"], make_arrays(30)["y_train"]
    dataset = from_arrays(images, labels, test_split=0.1)
    assert np.bincount(dataset.y_test).tolist() == [1, 1, 1] and len(dataset.x_train) == 27
    npz = {"x_train": images, "y_train": labels, "x_test": None, "y_test": None}
    assert load_path(write_npz(tmp_path / "a.npz", **npz), test_split=0.1).digest == dataset.digest
    with pytest.raises(DataError, match="test has 0 images"):
        from_arrays(images, labels)
    with pytest.raises(DataError, match="test_split is 1; it must be at least 0 and below 1"):
        from_arrays(images, labels, test_split=1)


def test_a_set_with_test_images_takes_no_split(tmp_path):
    for path in (write_npz(tmp_path / "a.npz"), write_folder(tmp_path / "a", make_image_files())):
        with pytest.raises(DataError, match="has test images of its own; leave test_split out"):
            load_path(path, test_split=0.1)
    for name in ("auto", "cifar10", "cifar100", "synthetic"):
        with pytest.raises(DataError, match=f"{name}: has test images of its own"):
            fastcifar.load_data(name, test_split=0.1)


def test_a_run_on_a_folder_of_classes_says_and_records_what_was_resized(tmp_path, tiny_network, capfd):
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
    files = {f"{'ab'[i % 2]}/{i}.png": encode_image(image) for i, image in enumerate(images)}
    folder = str(write_folder(tmp_path / "own", files))
    flags = ["--data", folder, "--epochs", "1", "--device", "cpu", "--batch-size", "8", "--out", "run"]
    assert command.train(flags) == 2
    assert "test has 0 images" in capfd.readouterr().err
    assert command.train([*flags, "--test-split", "0.2"]) == 0
    out, err = capfd.readouterr()
    assert "20 images are resized to 32x32 pixels, the size that the network trains on" in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["n_train"], summary["n_test"], summary["n_resized"]) == (16, 4, 20)
    labels = np.arange(20) % 2
    result = fastcifar.fit(images, labels, test=0.2, epochs=1, device="cpu", batch_size=8)
    assert (result.summary["n_test"], result.summary["n_resized"]) == (4, 20)
    assert fastcifar.evaluate(result.model, (images, labels)) == fastcifar.evaluate(
        result.model, (images.transpose(0, 3, 1, 2) / 255, [str(label) for label in labels])
    )
