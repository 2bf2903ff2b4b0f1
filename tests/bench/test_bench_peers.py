"""The comparison with other programs, the launcher and the reading of tables. The peer is a program of the tests."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import TINY
from test_bench import one_commit, one_thread, results  # noqa: F401 (fixtures)
from torch import nn

from bench import compare, harness, launch, peers
from fastcifar.data.dataset import Dataset
from fastcifar.data.load import load

PEER = """
import os, sys
with open(sys.argv[0]) as file:
    print(len(file.read()), "characters")
import torch
from torch import nn

@torch.compile
def halved(x):
    return x / 2

@torch.compile(fullgraph=True)
def shifted(x):
    return x.to("cuda") - torch.tensor(0.5, dtype=torch.half, device="cuda")

def say(*cells):
    print("|" + "|".join(f"  {cell!s:>12.12}  " for cell in cells) + "|")

def images(part):
    loaded = torch.load(os.path.join("cifar10", part + ".pt"), map_location=torch.device("cuda"), weights_only=True)
    x = (loaded["images"].half() / 255).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    return shifted(halved(x)), loaded["labels"]

def main(run, model):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    x, y = images("train")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    order = torch.randperm(len(y), device=x.device)
    nn.functional.cross_entropy(model(x[order]), y[order]).backward()
    optimizer.step()
    end.record()
    torch.cuda.synchronize()
    x, y = images("test")
    right = (model(x).argmax(1) == y).float().mean().item()
    say(run, 0, 0.5, right, "", "")
    say("", "eval", 0.5, right, right, 1e-3 * start.elapsed_time(end))

model = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).half().cuda(), mode="max-autotune")
model._orig_mod[1].compile()
say("run", "epoch", "train_acc", "val_acc", "tta_val_acc", "time_seconds")
main("warmup", model)
for run in range(200):
    torch.cuda._sleep(10)
    main(run, model)
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    return script


def test_peer_table_counts_networks_that_saw_the_labels() -> None:
    table = peers.PeerTable()
    lines = ["-" * 40, "|  run   | epoch | train_acc | val_acc | tta_val_acc | total_time_seconds  |",
             "| warmup |     0 |    0.1000 |  0.1000 |             |             1.0000  |",
             "|        |  eval |    0.1000 |  0.1000 |      0.1000 |             1.2000  |",
             "Training something first...", "|      0 |     0 |    0.8000 |  0.7000 |             |      2.0000  |",
             "|        |  eval |    0.8000 |  0.7000 |      0.7500 |             2.5000  |",
             "|      1 |  eval |    0.8000 |  0.7000 |      0.7600 |             2.6000  |"]  # fmt: skip
    found = [row for line in lines if (row := table.feed(line + "\n"))]
    assert found == [{"accuracy": 0.75, "time_s": 2.5}, {"accuracy": 0.76, "time_s": 2.6}]


def test_prepared_images_are_the_same_for_all_programs(tmp_path: Path, dataset: Dataset) -> None:
    path = peers.prepare_images(dataset, tmp_path)
    for_fastcifar = load(str(path), cache_dir=str(tmp_path / "cache"), progress=False)
    for_peers = torch.load(tmp_path / "cifar10" / "train.pt", weights_only=True)
    np.testing.assert_array_equal(for_peers["images"].numpy(), for_fastcifar.x_train)
    np.testing.assert_array_equal(for_peers["labels"].numpy(), for_fastcifar.y_train)
    assert for_peers["images"].dtype == torch.uint8 and for_peers["labels"].dtype == torch.int64
    assert tuple(for_peers["classes"]) == dataset.classes


@pytest.mark.parametrize(
    ("program", "limit_s", "why"),
    [("print('no card'); raise SystemExit(3)", 60, "exit code 3 with 0 of 1 networks; its last line: no card"),
     ("import time; time.sleep(60)", 0.5, "cut after 0.5 s")],
)  # fmt: skip
def test_peer_that_fails_or_hangs_is_an_error_row(tmp_path: Path, program: str, limit_s: float, why: str) -> None:
    command = [sys.executable, "-c", program]
    row = peers.run_until(command, tmp_path, tmp_path / "log.txt", peers.PeerTable().feed, 1, limit_s, {})
    assert why in row["error"] and row["total_s"] < 30


def test_unknown_peer_is_refused(tmp_path: Path, peer: Path) -> None:
    for text in ("airbench94", f"airbench94={tmp_path}", f"other={tmp_path}", "other=no.py"):
        with pytest.raises(ValueError, match="NAME=SCRIPT"):
            peers.find_peer(text)
    assert peers.find_peer(f"tiny={peer}").digest == peers.find_peer(f"also={peer}").digest


def test_without_a_card_calls_land_on_the_cpu_in_float32() -> None:
    with launch.NoCard():
        half = torch.zeros(3, dtype=torch.float16, device="cuda").cuda()
        assert half.dtype == torch.float32 and half.device.type == "cpu"
        x = torch.ones(2)
        y = x.bfloat16()
        y /= 2  # a cast copies, as on a card
        assert x.tolist() == [1, 1] and x.to("cuda:0").device.type == "cpu" and x.to(torch.half).dtype == torch.float32
        assert nn.Linear(2, 2).half().cuda().weight.dtype == torch.float32
    assert torch.zeros(1, dtype=torch.float16).dtype == torch.float16  # only inside


def test_compare(tmp_path: Path, peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run_until(command: list[str], *args: Any, **kwargs: Any) -> dict[str, Any]:
        commands.append(command)
        time_s, first_s = (2.0, 10.0) if "train_fast.py" in command[1] else (6.0, 40.0)
        run = {"accuracy": 0.5, "time_s": time_s, "scale": "small", "epochs": 1.0, "precision": "fp32"}
        return {"runs": [run], "first_s": first_s, "total_s": 41.0}

    monkeypatch.setattr(compare, "run_until", run_until)
    argv = ["--peer", f"tiny={peer}", "--data", "synthetic", "--subset", "50", "--rounds", "2", "--out", str(tmp_path)]
    assert compare.main(argv) == 0 and len(commands) == 4
    assert ["train_fast.py" in c[1] for c in commands] == [True, False, True, False]  # in turn
    fastcifar, tiny = results(tmp_path, "ratios.png")["table"]
    assert tiny["ratio_own_clock"]["mean"] == 3 and tiny["ratio_process"]["mean"] == 4
    assert fastcifar["process_first_s"] == 10 and tiny["process_later_s"]["n"] == 1
    assert tiny["sha256"] == peers.find_peer(f"tiny={peer}").digest
    assert compare.main(argv) == 0 and len(commands) == 4  # nothing is run twice
    peer.write_text(PEER + "\n# changed")
    assert compare.main(argv) == 0 and len(commands) == 6  # a changed peer is another one


def test_compare_with_real_processes(tmp_path: Path, peer: Path) -> None:
    """The peer would go on; it ends after two networks."""
    before, out = peer.read_bytes(), tmp_path / "out"
    argv = ["--peer", f"tiny={peer}", "--data", "synthetic", "--subset", "200", "--rounds", "1", "--networks", "2"]
    settings = f"epochs=1 batch_size=50 shape={TINY}"
    assert compare.main([*argv, "--set", settings, "--out", str(out)]) == 0
    fastcifar, tiny = results(out)["table"]
    assert fastcifar["accuracy"]["n"] == 1 and tiny["accuracy"]["n"] == 2 and tiny["ratio_process"]["mean"] > 0
    row = harness.read_rows(out / "runs.jsonl")[1]
    assert all(0 <= r["accuracy"] <= 1 and r["time_s"] > 0 for r in row["runs"]) and len(row["runs"]) == 2
    assert 0 < row["first_s"] <= row["total_s"] and peer.read_bytes() == before
    log = (out / "logs" / "tiny-0.txt").read_text()
    assert f"{len(PEER)} characters" in log and "warmup" not in log  # nothing is compiled: nothing to warm up
