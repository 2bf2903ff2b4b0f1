"""The benches and the tests for a card, as far as they go without one.

Not what compares values (losses that fall, executors that agree, bits that repeat), nor DALI, nor torch.compile; and no
time that a bench gives means anything.
"""

import json
from pathlib import Path

import pytest
import stub
from results import marks

pytestmark = marks

FOR_A_CARD = (
    "test_train_gpu.py::test_the_fence_notices_a_wait",
    "test_train_gpu.py::test_every_convolution_sees_channels_last[resnet9-bf16]",
    "test_train_gpu.py::test_a_block_is_the_whole_epoch_where_memory_allows",
    "test_train_gpu.py::test_a_step_is_recorded_and_not_given_up[muon-bf16]",
    "test_train_gpu.py::test_a_step_is_recorded_and_not_given_up[sgd-fp16]",
    "test_preparation_gpu.py::test_every_run_of_a_job_prepares_in_its_timed_part",
    "test_dali_gpu.py::test_a_block_does_not_make_the_host_wait[TorchExecutor]",
)
"""Of the tests of a card those that look at the host's side."""


def test_tests_for_a_card_that_need_no_values() -> None:
    tests = [f"tests/gpu/{name}" for name in FOR_A_CARD]
    run = stub.run_python(["-m", "pytest", *tests, "-m", "", "-p", "no:cacheprovider", "-p", "no:randomly"])
    assert run.returncode == 0 and f"{len(tests)} passed" in run.stdout, run.stdout + run.stderr


def test_the_command_for_a_card_makes_its_report(tmp_path: Path) -> None:
    """With the part that is over soonest."""
    flags = ["--quick", "--only", "loader", "--budget-s", "200", "--out", str(tmp_path)]
    run = stub.run_python(["-m", "bench.gpu", *flags])
    index = json.loads((tmp_path / "index.json").read_text())
    assert run.returncode == 0, run.stdout + run.stderr
    assert index["card"] == "Stub card" and [part["status"] for part in index["parts"]] == ["done"]
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Stub card") and "| torch | 500 |" in report


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), [("step", ["--variants", "bf16", "--scale", "small"]),
                                             ("time_to_accuracy", ["--data", "synthetic"])])  # fmt: skip
def test_benches_of_a_step_and_of_a_run(tmp_path: Path, name: str, flags: list[str]) -> None:
    run = stub.run_python(["-m", f"bench.{name}", "--quick", *flags, "--out", str(tmp_path)])
    assert run.returncode == 0 and "Stub card" in (tmp_path / "table.md").read_text(), run.stdout + run.stderr
