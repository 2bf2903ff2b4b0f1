"""Runs every bench in a small form: its files parse, its figures make sense, an interrupted bench continues."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench import floors, harness, time_to_accuracy
from fastcifar.augment.images import to_device
from fastcifar.config.config import Config, Model
from fastcifar.config.schedules import MultiStep, OneCycle
from fastcifar.data.dataset import Dataset
from fastcifar.models.counts import train_flop
from fastcifar.models.networks import make_model
from fastcifar.runs import environment, intervals
from fastcifar.training.hardware import resolve
from fastcifar.training.stopwatch import Stopwatch
from fastcifar.training.task import Task


@pytest.fixture(autouse=True)
def one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row belongs to a commit, which must not change during a test."""
    monkeypatch.setattr(environment, "source_state", lambda: {"commit": "c0ffee", "dirty": False})


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks as small as these take ten times as long with two threads that wait for each other on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes that a test starts
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(out: Path, *pictures: str) -> dict[str, Any]:
    """Checks the files of a bench and returns its table.json."""
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert rows and all("state" in row or "recipe" in row for row in rows)
    assert (out / "table.md").read_text().count("\n| ") >= 2  # a header and a row at least
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    table = json.loads((out / "table.json").read_text())
    assert table["versions"]["torch"] == torch.__version__ and table["commit"] == "c0ffee"
    return table


# Shared functions


def test_settings_become_flags() -> None:
    config = harness.parse("swa30", "epochs=10 swa_start=None", "cycle_momentum=false epochs=12")
    assert isinstance(config.schedule, OneCycle)
    assert (config.epochs, config.tail, config.schedule.cycle_momentum) == (12.0, None, False)
    schedule = harness.parse("swa30", "schedule=multistep", "milestones=0.4,0.8").schedule
    assert isinstance(schedule, MultiStep) and schedule.milestones == (0.4, 0.8)


@pytest.mark.parametrize("text", ["epochs", "=3", "epocs=3", "epochs=many"])
def test_wrong_settings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        harness.parse("swa30", text)


def test_a_setting_without_effect_is_refused_in_one_line() -> None:
    for settings, variant in (("swa_start=None swa_lr=0.1", ""), ("epochs=10", "swa_start=None swa_lr=0.1")):
        with pytest.raises(ValueError, match=r"^--swa-lr has no effect") as error:
            harness.parse("swa30", settings, variant)
        assert "\n" not in str(error.value)


def test_a_variant_may_remove_what_a_setting_belongs_to() -> None:
    config = harness.parse("swa30", "swa_lr=0.02 tta_share=0.5 epochs=10", "swa_start=None tta=none")
    assert (config.tail, config.evaluation.tta, config.epochs) == (None, "none", 10.0)
    config = harness.parse("swa30", "momentum_min=0.5 pct_start=0.3", "schedule=cosine")
    assert config.schedule.name == "cosine"


def test_rows_are_measured_once_per_state(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure(**result: Any) -> Callable[[], dict[str, Any]]:
        return lambda: (calls.append(1), result)[1]

    for _ in range(2):  # the second time from the file, as in another process
        rows = harness.Rows(tmp_path / "runs.jsonl", "here")
        assert rows.get_or_measure({"seed": 0}, measure(value=1))["value"] == 1
    assert len(calls) == 1
    rows.get_or_measure({"seed": 0}, measure(value=2), "another commit")
    rows.get_or_measure({"seed": 1}, measure(error="no memory"))
    rows.get_or_measure({"seed": 1}, measure(value=3))  # a failed measurement is repeated
    assert len(calls) == 4 and len(harness.read_rows(tmp_path / "runs.jsonl")) == 4


def test_state_follows_what_a_figure_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config, other = make_config(device="cpu"), make_config(device="cpu", lr_peak=0.3)
    assert harness.state_of(config) == harness.state_of(harness.with_seed(config, 5)) != harness.state_of(other)
    before = harness.state_of(config)
    assert before != harness.state_of(config, "other images")
    monkeypatch.setattr(environment, "source_state", lambda: {"commit": "decaf", "dirty": False})
    assert before != harness.state_of(config)


def test_state_depends_on_all_settings_that_change_a_run() -> None:
    base = make_config(device="cpu")
    changes: list[dict[str, Any]] = [
        {"epochs": 2}, {"schedule": "linear"}, {"pct_start": 0.1}, {"batch_size": 64}, {"optimizer": "muon"},
        {"swa_start": None}, {"swa_every": 5}, {"tta": "flip"}, {"eval_every": 2}, {"compile": "default"},
        {"deterministic": True}, {"data": "synthetic"}, {"scale": "small"}, {"recipe": "swa30"}, {"smoke": True},
    ]  # fmt: skip
    states = [harness.state_of(make_config(device="cpu", **change)) for change in changes]
    assert len({harness.state_of(base), *states}) == 1 + len(changes)
    for same in ({"seed": 3}, {"runs": 4}, {"target": 0.9}):
        assert harness.state_of(make_config(device="cpu", **same)) == harness.state_of(base)


def test_train_once_prints_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tiny_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(device="cpu", precision="fp32", scale="small", epochs=1, batch_size=32, checkpoint_every=1)
    result = harness.train_once(config, harness.random_dataset(64, 32))
    assert len(result.history) == 1 and 0 <= result.summary["accuracy"] <= 1
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


class Halves(torch.nn.Module):
    """Two logits, the means of the left and of half the right part of an image: its mirror has others."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * torch.stack((x[:, 0, :, :16].mean((1, 2)), 0.5 * x[:, 0, :, 16:].mean((1, 2))), 1)


def test_the_mirrored_loss_is_that_of_the_best_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (100, 1, 2, 1), generator=generator, dtype=torch.uint8)
    pixels = pixels.repeat_interleave(16, 2).expand(-1, 32, -1, 3)  # left and right are of one brightness each
    labels = torch.randint(0, 2, (100,), generator=generator)
    labels[:80] = 1 - (pixels[:80, 0, 0, 0].float() + pixels[:80, 0, 31, 0].float() > 255).long()
    images = to_device(pixels, labels, (0.5,) * 3, (0.25,) * 3, 0, torch.device("cpu"), torch.float32)
    sum_of_both = (pixels[:, 0, 0, 0].float() + pixels[:, 0, 31, 0].float() - 255) / 255 / 0.25
    logits = torch.stack((sum_of_both / 2, sum_of_both / 4), 1)  # both views
    best = min(cross_entropy(logits * factor, labels).item() for factor in torch.linspace(0, 40, 4000))
    found = [harness.mirrored_loss(Halves(factor), images) for factor in (1.0, 2.5)]
    assert found == pytest.approx([best, best], rel=1e-3)
    assert best < 0.9 * cross_entropy(logits, labels).item()  # the temperature is a part of it


def test_train_once_obeys_deterministic_and_restores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def note(task: Task, stopwatch: Stopwatch) -> Namespace:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return Namespace(summary={})

    monkeypatch.setattr(harness, "train", note)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored after the test
    for deterministic in (True, False):
        config = make_config(device="cpu", scale="small", deterministic=deterministic)
        harness.train_once(config, harness.random_dataset(20, 10))
    assert seen == [True, False] and not torch.are_deterministic_algorithms_enabled()


def test_intervals_are_shown_with_significant_digits() -> None:
    assert harness.format_interval(intervals.interval([1.0, 3.0])) == "2 ± 1.41 [-10.7, 14.7]"
    assert harness.format_interval(intervals.interval([123456.0])) == "123,456"
    assert harness.format_interval(intervals.interval([])) == harness.format_interval(None) == "-"


# The benches


def test_floors_count_the_whole_step() -> None:
    config, hardware = resolve(make_config(device="cpu", precision="fp32", scale="small"))
    counted = floors.Floors(config, hardware, batch=10)
    model = make_model(Model(network="resnet9", scale="small", norm="bn"), 10, 0)
    assert counted.flop["forward"] + counted.flop["backward"] == pytest.approx(10 * train_flop(model), rel=1e-6)
    assert 1.5 < counted.flop["backward"] / counted.flop["forward"] < 2.1
    # The forward pass keeps at least the input of each convolution, at most a few copies of every activation.
    entering = 3 * 32**2 + 24 * 31**2 + 16 * 15**2 * 1 + 16 * 15**2 + 64 * 7**2 * 2 + 64 * 7**2
    assert entering < counted.bytes["forward"] / 4 / 10 < 10 * entering
    assert counted.parts_ms()["step"] > counted.parts_ms()["forward"] > 0


def fake_run(accuracy: Callable[[Config], float]) -> Callable[..., Namespace]:
    """Stands in for harness.train_once: returns a summary at once."""

    def train_once(config: Config, dataset: Dataset, pause_s: float = 0.0) -> Namespace:
        times = {"train": 1.0 + config.seed, "swa": 0.25, "eval_final": 0.5, "compile": 0.0}
        summary = {
            "accuracy": accuracy(config), "accuracy_raw": 0.5, "accuracy_swa": None, "accuracy_tta": None,
            "time_s": times, "seed": config.seed, "dataset": dataset.name, "n_train": 100, "n_test": 20,
            "recipe": config.run.recipe, "scale": "small", "epochs": 1.0, "num_steps": 2, "train_pflop": 0.1,
            "device": "d", "precision": "fp32", "compile": "off", "augment": "torch", "versions": {},
            "peak_mem_mib": {"host": 10.0, "device": None}, "commit": None, "dirty": None,
            "preparation_s": 0.125, "joules": None if config.seed == 1 else 800.0,
        }  # fmt: skip
        return Namespace(summary=summary, history=[])

    return train_once


def test_time_to_accuracy_pairs_variants_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_run(lambda c: 0.9 + 0.01 * c.seed + (0.005 if c.schedule.peak == 0.5 else 0.0))
    count = [0]

    def interrupted_once(config: Config, dataset: Dataset, pause_s: float) -> Namespace:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(config, dataset)

    monkeypatch.setattr(harness, "train_once", interrupted_once)
    took = iter((30.0, 20.0))
    monkeypatch.setattr(time_to_accuracy, "run_process", lambda *_: {"process_s": next(took)})
    argv = ["--data", "synthetic", "--set", "subset=20 scale=small", "--runs", "3", "--vary", "lr_peak=0.5",
            "--target", "0.912", "--out", str(tmp_path)]  # fmt: skip
    assert time_to_accuracy.main(argv) == 130
    assert time_to_accuracy.main(argv) == 0
    assert count[0] == 7  # six runs and the one that was interrupted
    table = results(tmp_path, "runs.png")
    base, varied = table["table"]
    assert base["accuracy"]["mean"] == pytest.approx(0.91) and base["accuracy"]["n"] == 3
    assert varied["difference"]["mean"] == pytest.approx(0.005)
    assert varied["difference"]["std"] < 1e-9 < base["accuracy"]["std"]
    assert base["time_to_accuracy_s"]["mean"] == pytest.approx(1 + 1 + 0.25 + 0.5)
    assert base["peer_clock_s"]["mean"] == pytest.approx(2.75 + 0.125)
    assert (base["joules"]["n"], base["joules"]["mean"]) == (2, 800.0)  # of the seeds that have them
    assert base["share_reached"] == pytest.approx(1 / 3)
    assert (table["process_s"]["cold"]["mean"], table["process_s"]["warm"]["mean"]) == (30.0, 20.0)


def test_time_to_accuracy_refuses_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert time_to_accuracy.main(["--vary", "lr_peek=3", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not list(tmp_path.iterdir())


def test_a_warm_process_is_measured_after_its_cold_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the bench was interrupted between the two."""
    begun: list[tuple[str, int]] = []

    def run(arguments: Any, caches: Path, kind: str) -> dict[str, Any]:
        begun.append((kind, len([*caches.iterdir()])))
        if len(begun) == 2:
            raise KeyboardInterrupt
        (caches / kind).touch()
        return {"process_s": 1.0}

    monkeypatch.setattr(time_to_accuracy, "run_process", run)
    options, config = time_to_accuracy.Options(data="synthetic"), harness.parse("swa30", "data=synthetic scale=small")
    with pytest.raises(KeyboardInterrupt):
        time_to_accuracy.measure_processes(harness.Rows(tmp_path / "r.jsonl"), "x", config, options, [])
    for _ in range(2):
        found: list[dict[str, Any]] = []
        time_to_accuracy.measure_processes(harness.Rows(tmp_path / "r.jsonl"), "x", config, options, found)
        assert [row["process"] for row in found] == ["cold", "warm"]
    assert begun == [("cold", 0), ("warm", 1), ("cold", 0), ("warm", 1)]


def test_a_cold_process_finds_no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the test stands in for train_fast.py: it prints its environment."""
    program = tmp_path / "train_fast.py"
    program.write_text(
        "import json, os, sys, pathlib\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); out.mkdir()\n"
        "(out / 'model.safetensors').touch()\n"
        "named = {k: os.environ[k] for k in ('TORCHINDUCTOR_CACHE_DIR', 'FASTCIFAR_CACHE')}\n"
        "print(json.dumps({'time_s': named, 'accuracy': len(sys.argv)}))\n"
    )
    monkeypatch.setattr(time_to_accuracy, "ROOT", tmp_path)
    monkeypatch.setenv("FASTCIFAR_CACHE", "/usual")
    monkeypatch.delenv("FASTCIFAR_DATA", raising=False)
    caches = tmp_path / "caches"
    caches.mkdir()
    row = time_to_accuracy.run_process(["--data", "synthetic"], caches, "cold")
    assert row["process_s"] > 0 and all(str(caches) in path for path in row["time_s"].values())
    kept = time_to_accuracy.run_process(["--data", "cifar10"], caches, "warm")
    assert kept["time_s"]["FASTCIFAR_CACHE"] == "/usual"  # a download would time the network
    program.write_text("raise SystemExit('no room')")
    assert "no room" in time_to_accuracy.run_process([], caches, "cold")["error"]
