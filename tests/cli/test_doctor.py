"""`fastcifar doctor`: the lines and the exit code on a healthy machine, and with each thing missing or broken."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastcifar.augment.dali import DaliUnavailable
from fastcifar.cli import doctor
from fastcifar.cli.main import main
from fastcifar.data import cache

NAMES = ["python", "libraries", "device", "CUDA", "DALI", "apex", "compiler", "CIFAR-10", "data cache",
         "compiler cache", "run folder"]  # fmt: skip


@pytest.fixture
def report(tmp_path, monkeypatch, capfd):
    """Runs the command and gives its exit code and {name: (mark, text)}. CIFAR-10 is in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCIFAR_CACHE", str(tmp_path / "cache"))
    for name in ("FASTCIFAR_DATA", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cache").mkdir()
    with (tmp_path / "cache/cifar10.cache").open("wb") as file:
        images = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)
        cache.write_cache(file, cache.Dataset("cifar10", tuple("abcd"), *images, *images, (0.5,) * 3, (0.2,) * 3,
                                              cache.dataset_digest(tuple("abcd"), (*images, *images))))  # fmt: skip
    if not torch.cuda.is_available():  # DALI takes a second: tried in one test
        monkeypatch.setattr(doctor, "DaliExecutor", lambda images: None)

    def run() -> tuple[int, dict[str, tuple[str, str]]]:
        code = main(["doctor"])
        *lines, last = capfd.readouterr().out.splitlines()
        items = {line[9:23].strip(): (line[:8].strip(), line[24:]) for line in lines}
        assert len(items) == len(lines) and all(text for _, text in items.values())
        assert last.startswith("the default run works here" if code == 0 else "the default run does not work")
        assert code == any(mark == "error" for mark, _ in items.values())
        return code, items

    return run


def test_a_healthy_machine(report, tmp_path):
    code, items = report()
    assert code == 0 and list(items) == NAMES
    assert {items[name][0] for name in ("python", "libraries", "device", "CIFAR-10", "data cache", "run folder")} == {
        "ok"
    }
    assert "cifar10 from the cache" in items["CIFAR-10"][1] and "writable" in items["data cache"][1]
    assert items["compiler cache"][1].startswith(str(tmp_path / "cache" / "compiled"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]  # it leaves nothing behind


def test_missing_images_are_told_with_the_command_that_fetches_them(report, tmp_path):
    (tmp_path / "cache/cifar10.cache").unlink()
    code, items = report()
    mark, text = items["CIFAR-10"]
    archive = tmp_path / "cache/cifar-10-python.tar.gz"
    assert (code, mark) == (0, "missing") and f"-o {archive} https://www.cs.toronto.edu/" in text
    archive.touch()
    assert report()[1]["CIFAR-10"] == ("ok", f"from {archive}")


def test_a_damaged_cache_is_told(report, tmp_path):
    (tmp_path / "cache/cifar10.cache").write_bytes(b"x" * 100)
    code, items = report()
    assert code == 0 and items["CIFAR-10"][0] == "missing"
    assert items["CIFAR-10"][1].endswith(f"rm {tmp_path}/cache/cifar10.cache")


def test_a_cache_that_cannot_be_written_is_an_error_only_where_images_must_be_stored(report, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCIFAR_CACHE", "/proc/fastcifar")  # not even root makes a folder there
    code, items = report()
    assert (
        code == 1 and items["data cache"][0] == "error" and "choose another with --cache-dir" in items["data cache"][1]
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data/cifar-10-python.tar.gz").touch()
    code, items = report()
    assert code == 0 and items["data cache"][0] == "missing" and items["CIFAR-10"][0] == "ok"


def test_a_folder_of_another_user_is_told_with_the_command_that_mends_it(report, tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    code, items = report()
    assert (
        code == 1 and items["run folder"][0] == "error" and f"sudo chown -R $USER {tmp_path}" in items["run folder"][1]
    )
    assert items["compiler cache"][0] == "missing"


def test_a_full_disk(report, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    code, items = report()
    assert code == 1 and items["run folder"][0] == "error" and "5 MiB free, 100 are needed" in items["run folder"][1]
    assert items["data cache"][0] == "ok"  # nothing has to be written there


def test_without_dali(report, monkeypatch):
    monkeypatch.setattr(doctor, "has_dali", lambda: False)
    for driver, package in ((None, "130"), ("580.65", "130"), ("550.1", "120")):
        monkeypatch.setattr(doctor, "versions", lambda driver=driver: {**known, "driver": driver})
        code, items = report()
        assert code == 0 and items["DALI"][0] == "missing"
        assert items["DALI"][1].endswith(f"pip install nvidia-dali-cuda{package}")


known = doctor.versions()


def test_dali_that_does_not_run(report, monkeypatch):
    def refuse(images):
        raise DaliUnavailable(RuntimeError("no driver"))

    monkeypatch.setattr(doctor, "has_dali", lambda: True)
    monkeypatch.setattr(doctor, "DaliExecutor", refuse)
    code, items = report()
    assert code == 0 and items["DALI"][0] == "missing" and "no driver; pip install" in items["DALI"][1]


def test_without_a_compiler_and_without_headers(report, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "python3-dev" in report()[1]["compiler"][1]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, items = report()
    assert code == 0 and items["compiler"] == (
        "missing", "--compile needs g++: sudo apt install build-essential",
    )  # fmt: skip
    monkeypatch.setenv("CXX", "clang++ -O1")
    assert "needs clang++:" in report()[1]["compiler"][1]


def test_the_compiler_of_a_card_is_triton(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor._compiler(on_gpu=True).text.endswith("pip install triton")


def test_a_missing_library(report, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "PIL" else object())
    code, items = report()
    assert code == 1 and items["libraries"] == ("error", "pip install pillow")


def test_a_card_that_does_not_start(report, monkeypatch):
    choose = doctor.resolve

    def fail(config):
        if config.machine.device == "auto":
            raise RuntimeError("CUDA unknown error\nsecond line")
        return choose(config)

    monkeypatch.setattr(doctor, "resolve", fail)
    code, items = report()
    assert code == 1 and items["device"][0] == "error" and "CUDA unknown error second line" in items["device"][1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a card")
@pytest.mark.parametrize(
    ("driver", "cuda", "command"),
    [("590.1", None, "pip install --force-reinstall torch torchvision"),
     ("535.1", "13.0", "sudo apt install nvidia-driver-580"), (None, "13.0", "docker run --gpus all)")],
)  # fmt: skip
def test_a_card_that_torch_does_not_use(monkeypatch, driver, cuda, command):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    item = doctor._cuda(driver)
    assert item.mark == "missing" and item.text.endswith(command)


@pytest.mark.parametrize("word", ["--nope", "x"])
def test_an_argument_is_refused(capfd, word):
    assert main(["doctor", word]) == 2
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and word in said.err
