"""Every kind of source read right, every kind of fault said in one line, and a cache that is whole or built again."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcifar import data, download, formats, sources
from fastcifar.config import Config
from fastcifar.data import DataError, Dataset, hold_out, load, take_subset

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No test sees the user's cache or data folder, or the network."""
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def offline(target, progress):
        raise download.NoDownloadError("no network in tests")

    monkeypatch.setattr(download, "fetch", offline)


def read(path: Path, **more) -> Dataset:
    return load(Config(data=str(path), **more), progress=False)


def refuse(path: Path, *words: str) -> None:
    """Loading must end in a one-line DataError that has these words, and leave no cache."""
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert not list(Path(os.environ["FASTCIFAR_CACHE"]).glob("*"))


# Tiny sets of each kind


def pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def image_files(classes=("cat", "dog"), n_train: int = 3, n_test: int = 2) -> dict[str, bytes]:
    x = iter(pixels(len(classes) * (n_train + n_test)))
    return {
        f"{split}/{name}/{i:02}.png": encoded(next(x))
        for split, n in (("train", n_train), ("test", n_test))
        for name in classes
        for i in range(n)
    }


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def official_files(n: int = 20, classes=CIFAR10, order: str = "") -> dict[str, bytes]:
    """The seven files in the official layout, n images each, as cPickle of Python 2 wrote them: protocol 2, bytes."""
    files = {"batches.meta": pickle.dumps({b"label_names": [c.encode() for c in classes], b"num_vis": 3072}, 2)}
    for index, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        planes = pixels(n, index).transpose(0, 3, 1, 2).reshape(n, 3072).copy()
        labels = [i % len(classes) for i in range(n)]
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": planes, b"filenames": [b"x.png"] * n}
        files[name] = pickle.dumps(batch, 2)
    return files


def in_official_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


def arrays(n_train: int = 12, n_test: int = 6, k: int = 3) -> dict[str, np.ndarray]:
    y = np.arange(n_train + n_test) % k
    x = pixels(n_train + n_test)
    return {"x_train": x[:n_train], "y_train": y[:n_train], "x_test": x[n_train:], "y_test": y[n_train:]}


def write_npz(path: Path, **changes) -> Path:
    np.savez(path, **{name: a for name, a in (arrays() | changes).items() if a is not None})
    return path


def declare_official(monkeypatch, files: dict[str, bytes]) -> None:
    monkeypatch.setattr(
        formats, "OFFICIAL_MD5", {name: hashlib.md5(files[name]).hexdigest() for name in formats.OFFICIAL_MD5}
    )


# Reading


def test_official_folder_gives_images_labels_and_classes_in_order(tmp_path):
    root = write_folder(tmp_path / "somewhere", in_official_folder(official_files()))
    for path in (root, root / "cifar-10-batches-py"):
        dataset = read(path)
        assert dataset.classes == CIFAR10
        assert np.array_equal(dataset.x_train, np.concatenate([pixels(20, i) for i in range(5)]))
        assert np.array_equal(dataset.x_test, pixels(20, 5))
        assert np.array_equal(dataset.y_train, np.tile(np.arange(20) % 10, 5))
        assert dataset.x_train.dtype == np.uint8 and dataset.x_train.flags.c_contiguous
        assert dataset.y_train.dtype == dataset.y_test.dtype == np.int64
    assert dataset.name == "cifar-10-batches-py"  # not cifar10: these are not the published files


def test_a_batch_as_python_2_wrote_it_is_read(tmp_path):
    """Opcodes BINSTRING and GLOBAL numpy.core.multiarray, which Python 3 no longer writes."""
    n = 2
    raw = pixels(n).transpose(0, 3, 1, 2).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )
    batch = b"\x80\x02}q\x00(U\x04data" + array + b"U\x06labels]q\x06(K\x00K\x01eu."
    files = official_files(classes=("a", "b")) | {"data_batch_1": batch}
    dataset = read(write_folder(tmp_path / "set", in_official_folder(files)))
    assert np.array_equal(dataset.x_train[:2], pixels(2)) and list(dataset.y_train[:2]) == [0, 1]


@pytest.mark.parametrize("protocol", [2, 3])
def test_official_archive_of_any_compression(tmp_path, protocol):
    files = in_official_folder({name: pickle.dumps(pickle.loads(c), protocol) for name, c in official_files().items()})
    digests = set()
    for suffix, mode in ((".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz"), (".tar", "w")):
        digests.add(read(write_tar(tmp_path / f"a{suffix}", files, mode)).digest)
    assert len(digests) == 1


def test_official_by_checksum_is_named_cifar10(tmp_path, monkeypatch):
    files = official_files()
    declare_official(monkeypatch, files)
    assert read(write_tar(tmp_path / "mine.tar", in_official_folder(files))).name == "cifar10"


def test_image_folder_and_tars_of_it_agree(tmp_path):
    files = image_files()
    folder = read(write_folder(tmp_path / "toy", files))
    assert folder.name == "toy" and folder.classes == ("cat", "dog")
    assert np.array_equal(folder.x_train, pixels(10)[:6]) and list(folder.y_train) == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(folder.x_test, pixels(10)[6:]) and list(folder.y_test) == [0, 0, 1, 1]
    backwards = dict(reversed({f"top/{name}": content for name, content in files.items()}.items()))
    dotted = {f"./{name}": content for name, content in files.items()}
    for name, content, mode in (("a.tar", files, "w"), ("b.tar.xz", backwards, "w:xz"), ("c.tgz", dotted, "w:gz")):
        tar = read(write_tar(tmp_path / name, content, mode))
        assert tar.digest == folder.digest and tar.name == name[0]


def test_jpeg_grey_palette_and_alpha_images_become_rgb(tmp_path):
    image = Image.fromarray(pixels(1)[0])
    files = image_files()
    for i, mode in enumerate(("L", "P", "RGBA", "1")):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, "PNG")
        files[f"train/cat/x{i}.PNG"] = buffer.getvalue()
    files["train/dog/x.jpeg"] = encoded(pixels(1)[0], "JPEG", quality=90)
    dataset = read(write_folder(tmp_path / "toy", files))
    assert len(dataset.x_train) == 11
    expected = np.asarray(Image.open(io.BytesIO(files["train/dog/x.jpeg"])))
    assert np.array_equal(dataset.x_train[-1], expected)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    files = image_files() | {
        "train/cat/._00.png": b"mac",
        "train/cat/notes.txt": b"",
        "readme.md": b"",
        ".x/y.png": b"",
    }
    assert len(read(write_folder(tmp_path / "a", files)).x_train) == 6
    assert len(read(write_tar(tmp_path / "a.tar", files)).x_train) == 6


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint64, np.int64])
def test_npz_with_labels_of_any_integer_type(tmp_path, kind):
    labels = arrays()["y_train"].astype(kind)
    flat = read(write_npz(tmp_path / "a.npz", y_train=labels))
    column = read(write_npz(tmp_path / "b.npz", y_train=labels[:, None]))
    assert flat.classes == ("0", "1", "2") and flat.name == "a" and flat.digest == column.digest
    assert flat.y_train.dtype == np.int64 and np.array_equal(flat.x_test, arrays()["x_test"])


def test_npz_with_class_names(tmp_path):
    assert read(write_npz(tmp_path / "a.npz", classes=np.array(["x", "y", "z"]))).classes == ("x", "y", "z")


def test_user_files_cannot_pass_for_the_official_set(tmp_path):
    assert read(write_npz(tmp_path / "cifar10.npz")).name == "cifar10-custom"


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    dataset = read(write_npz(tmp_path / "a.npz"))
    x = dataset.x_train.astype(np.float64) / 255
    assert np.allclose(dataset.mean, x.mean((0, 1, 2)), atol=1e-12, rtol=0)
    assert np.allclose(dataset.std, x.std((0, 1, 2)), atol=1e-12, rtol=0)
    grey = read(write_npz(tmp_path / "b.npz", x_train=np.full((12, 32, 32, 3), 7, np.uint8)))
    assert grey.std == (1.0, 1.0, 1.0)  # dividing by it stays finite


# Refusing


def test_missing_path(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere", "no such file", "train/<class>")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 300, "a\0b"])
def test_impossible_paths(path):
    refuse(Path(path))


def test_a_folder_without_a_data_set(tmp_path):
    refuse(tmp_path / "cwd", "holds no data set")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG" * 999, b"PK\x03\x04" + b"x" * 99, b"\0" * 10240])
def test_unknown_kind_of_file(tmp_path, content):
    (tmp_path / "thing").write_bytes(content)
    refuse(tmp_path / "thing", "thing")


def test_a_device_is_not_a_data_set():
    refuse(Path("/dev/zero"), "holds no data set")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_truncated_archive(tmp_path, mode, share):
    path = write_tar(tmp_path / "a.tar", image_files(), mode)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refuse(path, "a.tar")


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", image_files())
    content = bytearray(path.read_bytes())
    at = content.index(b"test/dog/01.png")
    content[at] ^= 1
    path.write_bytes(content)
    refuse(path, "damaged or cut off")


def test_a_flipped_bit_in_compressed_pixels_is_found(tmp_path):
    """Behind the last member's header nobody parses: only the compressor's checksum tells."""
    for mode in ("w:gz", "w:xz"):
        path = write_tar(tmp_path / "a.tar", image_files(), mode)
        content = bytearray(path.read_bytes())
        content[-10] ^= 1  # in the checksum itself
        path.write_bytes(content)
        refuse(path, "a.tar")


def test_bad_image_is_named(tmp_path):
    for bad in (b"", b"not an image", encoded(pixels(1)[0])[:-40], encoded(pixels(1)[0], "GIF")):
        files = image_files() | {"test/dog/01.png": bad}
        refuse(write_folder(tmp_path / "toy", files), "test/dog/01.png", "not a readable PNG or JPEG")
        refuse(write_tar(tmp_path / "toy.tar", files), "test/dog/01.png", "not a readable PNG or JPEG")


def test_image_of_another_size_is_named_with_what_was_expected(tmp_path):
    files = image_files() | {"train/cat/01.png": encoded(np.zeros((28, 30, 3), np.uint8))}
    refuse(write_folder(tmp_path / "toy", files), "train/cat/01.png", "30x28", "32x32")


def test_empty_class_folder(tmp_path):
    root = write_folder(tmp_path / "toy", image_files())
    (root / "train" / "eel").mkdir()
    refuse(root, "train/eel", "no images")
    eel = tarfile.TarInfo("train/eel")
    eel.type = tarfile.DIRTYPE
    refuse(write_tar(tmp_path / "toy.tar", image_files(), extra=(eel,)), "train/eel", "no images")


def test_classes_that_differ_between_train_and_test(tmp_path):
    files = image_files() | {"train/eel/0.png": encoded(pixels(1)[0])}
    refuse(write_folder(tmp_path / "toy", files), "train and test differ", "eel")


def test_train_without_test(tmp_path):
    refuse(write_folder(tmp_path / "toy", image_files(n_test=0)), "train and test differ")


def test_a_file_twice_in_a_tar(tmp_path):
    path = write_tar(tmp_path / "a.tar", image_files())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("train/cat/00.png")
        content = encoded(pixels(1)[0])
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    refuse(path, "twice")


def test_images_outside_the_class_folders_and_two_sets_in_one_tar(tmp_path):
    picture = encoded(pixels(1)[0])
    refuse(write_tar(tmp_path / "a.tar", image_files() | {"logo.png": picture}), "logo.png", "not in train")
    refuse(write_tar(tmp_path / "b.tar", image_files() | {"b/train/cat/0.png": picture}), "more than one folder")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_test": None}, ("lacks x_test",)),
        ({"x_train": pixels(12).astype(np.float32)}, ("float32", "uint8 [N, 32, 32, 3]")),
        ({"x_train": pixels(12)[:, :28]}, ("[12, 28, 32, 3]",)),
        ({"x_train": pixels(12).transpose(0, 3, 1, 2)}, ("[12, 3, 32, 32]",)),
        ({"x_train": pixels(11)}, ("11 images and 12 labels",)),
        ({"y_train": np.zeros(12)}, ("y_train is float64",)),
        ({"y_train": np.full(12, np.nan)}, ("y_train is float64",)),
        ({"y_train": np.zeros((12, 2), int)}, ("[12, 2]",)),
        ({"y_train": np.full(12, 2**63, np.uint64)}, ("label", "9223372036854775808")),
        ({"y_train": np.array([-1] + [0] * 11)}, ("label", "-1")),
        ({"y_train": np.array([0, 2] * 6)}, ("'1' has no training images",)),
        ({"y_train": np.full(12, 10**9)}, ("1000000000",)),
        ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, ("test label is 3", "0..2")),
        ({"classes": np.array(["a", "b"])}, ("train label is 2", "0..1")),
        ({"classes": np.array(["a", "b", "b"])}, ("class names",)),
        ({"classes": np.array(["a", "b", "c\nd"])}, ("class names",)),
        ({"classes": np.arange(3)}, ("classes is int64",)),
        ({"x_train": np.array([{}] * 12, object)}, ("a.npz", "Object arrays")),
        ({"x_test": pixels(0), "y_test": np.zeros(0, int)}, ("test has 0 images",)),
        ({"x_train": pixels(0), "y_train": np.zeros(0, int)}, ("train has 0 images",)),
    ],
)
def test_npz_that_does_not_hold_a_data_set(tmp_path, change, words):
    refuse(write_npz(tmp_path / "a.npz", **change), *words)


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
    files = official_files() | {"data_batch_3": pickle.dumps(batch, 2)}
    refuse(write_folder(tmp_path / "set", in_official_folder(files)), *words)


def test_official_folder_with_a_file_missing(tmp_path):
    files = official_files()
    del files["data_batch_4"]
    refuse(write_folder(tmp_path / "set", in_official_folder(files)), "lacks data_batch_4")
    refuse(write_tar(tmp_path / "set.tar", in_official_folder(files)), "lacks data_batch_4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    path.chmod(0)
    refuse(path, "permission")


# auto and cifar10


def test_cifar10_from_the_data_folder_then_from_the_cache(tmp_path, monkeypatch):
    files = official_files()
    declare_official(monkeypatch, files)
    root = write_folder(tmp_path / "d", in_official_folder(files))
    monkeypatch.setenv("FASTCIFAR_DATA", str(root))
    first = load(Config(data="auto"), progress=False)
    assert first.name == "cifar10" and len(first.x_train) == 100
    monkeypatch.delenv("FASTCIFAR_DATA")
    assert load(Config(data="cifar10"), progress=False).digest == first.digest


def test_cifar10_from_the_archive_in_the_working_folder(tmp_path, monkeypatch):
    files = official_files()
    declare_official(monkeypatch, files)
    Path("data").mkdir()
    write_tar(Path("data") / "cifar-10-python.tar.gz", in_official_folder(files), "w:gz")
    assert load(Config(data="cifar10"), progress=False).name == "cifar10"


def test_files_that_are_not_the_published_ones_are_not_taken_for_cifar10(tmp_path, monkeypatch):
    write_folder(Path("data"), in_official_folder(official_files()))
    for wanted in ("auto", "cifar10"):
        with pytest.raises(DataError, match="not the published CIFAR-10"):
            load(Config(data=wanted), progress=False)


def test_a_download_is_decoded_and_kept(tmp_path, monkeypatch):
    files = official_files()
    declare_official(monkeypatch, files)

    def fetch(target, progress):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tar(target, in_official_folder(files), "w:gz")

    monkeypatch.setattr(download, "fetch", fetch)
    assert load(Config(data="auto"), progress=False).name == "cifar10"
    assert (tmp_path / "cache" / "cifar-10-python.tar.gz").exists()


def test_missing_cifar10_is_an_error_that_says_url_and_path(tmp_path):
    with pytest.raises(DataError) as caught:
        load(Config(data="cifar10"), progress=False)
    assert download.URL in str(caught.value) and str(tmp_path / "cache" / "cifar-10-python.tar.gz") in str(caught.value)


def test_auto_without_network_is_synthetic_and_says_so_loudly(capfd):
    dataset = load(Config(smoke=True), progress=False)
    assert dataset.name == "synthetic" and len(dataset.x_train) == 2_000 and len(dataset.x_test) == 400
    assert "SYNTHETIC" in capfd.readouterr().err


def test_no_network_is_found_out_fast_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:1/cifar-10-python.tar.gz")
    start = time.monotonic()
    with pytest.raises(download.NoDownloadError, match="refused"):
        download.fetch(tmp_path / "here" / "a.tar.gz", False)
    assert time.monotonic() - start < 5 and not (tmp_path / "here").exists()


def test_a_silent_name_server_counts_as_no_network(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(download, "NETWORK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: time.sleep(3))
    with pytest.raises(download.NoDownloadError, match="no answer"):
        download.fetch(tmp_path / "a.tar.gz", False)


# The cache


def cache_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def test_second_load_comes_from_the_cache(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", image_files())
    first = read(path)
    monkeypatch.setattr(sources, "read", lambda *_: pytest.fail("read the source again"))
    second = read(path)
    assert (first.digest, first.classes, first.mean, first.std) == (
        second.digest,
        second.classes,
        second.mean,
        second.std,
    )
    assert np.array_equal(first.x_train, second.x_train) and np.array_equal(first.y_test, second.y_test)
    assert read(path.rename(tmp_path / "b.tar")).name == "b"  # known by content, called by its name


def test_a_changed_source_is_read_again(tmp_path):
    root = write_folder(tmp_path / "toy", image_files())
    first = read(root)
    (root / "train/cat/00.png").write_bytes(encoded(pixels(1, 7)[0]))
    assert read(root).digest != first.digest


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "pixel", "longer", "garbage"])
def test_damaged_cache_is_said_and_built_again(tmp_path, capfd, damage):
    path = write_npz(tmp_path / "a.npz")
    first = read(path)
    (cache,) = cache_files(tmp_path)
    content = bytearray(cache.read_bytes())
    if damage == "pixel":
        content[-5000] ^= 1
    elif damage == "header":
        content[80] ^= 1
    changed = {"cut": content[:-9], "empty": b"", "longer": content + b"x", "garbage": b"\xff" * 999}.get(
        damage, content
    )
    cache.write_bytes(changed)
    assert read(path).digest == first.digest
    error = capfd.readouterr().err
    assert "damaged" in error and error.count("\n") == 1
    assert read(path).digest == first.digest and capfd.readouterr().err == ""


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "file"))
    assert len(read(write_npz(tmp_path / "a.npz")).x_train) == 12
    assert "going on without it" in capfd.readouterr().err


def test_full_disk_while_writing_the_cache_is_a_warning_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    def full(file, dataset):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_write_cache", full)
    assert len(read(write_npz(tmp_path / "a.npz")).x_train) == 12
    assert "No space left" in capfd.readouterr().err and cache_files(tmp_path) == []


def test_two_processes_at_once_both_succeed_and_the_cache_is_whole(tmp_path, capfd):
    path = write_tar(tmp_path / "a.tar", image_files(n_train=50))
    code = (
        "import sys; from fastcifar.config import Config; from fastcifar.data import load;"
        "print(load(Config(data=sys.argv[1])).digest)"
    )
    command = [sys.executable, "-c", code, str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0] and len(digests) == 1
    assert len(cache_files(tmp_path)) == 1
    capfd.readouterr()
    assert read(path).digest in digests and capfd.readouterr().err == ""


def test_cache_folder_from_config_then_environment(tmp_path, monkeypatch):
    assert data.cache_folder(Config(cache_dir="/x")) == Path("/x")
    assert data.cache_folder(Config()) == tmp_path / "cache"
    monkeypatch.delenv("FASTCIFAR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert data.cache_folder(Config()) == Path("/xdg/fastcifar")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_folder(Config()) == Path.home() / ".cache" / "fastcifar"


def test_importing_data_imports_neither_torch_nor_pil():
    code = "import sys, fastcifar.data; print([m for m in ('torch', 'torchvision', 'PIL', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


# Parts


def toy(n_train: int = 100, n_test: int = 30, k: int = 5) -> Dataset:
    made = arrays(n_train, n_test, k)
    return Dataset("toy", tuple("abcde"[:k]), *made.values(), mean=(0.5,) * 3, std=(0.2,) * 3, digest="whole")


def test_subset_takes_equal_parts_and_a_fifth_for_testing():
    part = take_subset(toy(), 52)
    assert list(np.bincount(part.y_train)) == [11, 11, 10, 10, 10] and list(np.bincount(part.y_test)) == [2] * 5
    assert np.array_equal(part.x_train[:50], toy().x_train[:50])  # the first of each class, in their order
    assert part.mean == (0.5,) * 3 and part.std == (0.2,) * 3 and part.digest != "whole"
    assert take_subset(toy(), 52).digest == part.digest
    assert list(np.bincount(take_subset(toy(), 5).y_test)) == [1] * 5


def test_subset_that_cannot_be_had():
    with pytest.raises(DataError, match="at least 5"):
        take_subset(toy(), 4)
    with pytest.raises(DataError, match="has 100"):
        take_subset(toy(), 101)


def test_smoke_takes_a_small_set_whole(tmp_path):
    assert len(read(write_npz(tmp_path / "a.npz"), smoke=True).x_train) == 12
    assert len(read(tmp_path / "a.npz", smoke=True, subset=6).x_train) == 6


def test_hold_out_is_stratified_disjoint_and_seeded():
    whole = toy()
    rest, x_val, y_val = hold_out(whole, 0.2, seed=3)
    assert list(np.bincount(y_val)) == [4] * 5 and list(np.bincount(rest.y_train)) == [16] * 5
    seen = {image.tobytes() for image in rest.x_train} | {image.tobytes() for image in x_val}
    assert len(seen) == 100 and rest.mean == whole.mean and len(rest.x_test) == 30
    assert np.array_equal(x_val, hold_out(whole, 0.2, seed=3)[1])
    assert not np.array_equal(x_val, hold_out(whole, 0.2, seed=4)[1])
    with pytest.raises(DataError, match="val_split"):
        hold_out(whole, 0.01, seed=0)
