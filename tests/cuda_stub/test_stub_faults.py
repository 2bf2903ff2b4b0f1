"""Faults put in on purpose are found: by the very checks that the other tests use."""

import pytest
from checks import complaints_about_layouts, complaints_about_recording, complaints_about_run
from results import ask, error_of, marks

pytestmark = marks


def test_a_wait_in_a_plain_step_is_counted() -> None:
    complaints = complaints_about_run(ask("runs", "fault: item, plain, the stub looks"))
    assert any("waits" in line for line in complaints) and any("copies_to_host" in line for line in complaints)


def test_a_wait_in_a_plain_step_is_an_error_to_torch() -> None:
    assert "synchronizing CUDA operation" in error_of("runs", "fault: item, plain, torch looks")


def test_a_wait_in_a_recorded_step_is_illegal() -> None:
    complaints = complaints_about_run(ask("runs", "fault: item, recorded"))
    assert any("illegal" in line for line in complaints)
    assert any(line.startswith("recorded: False, while that it can be is True") for line in complaints)


def test_an_index_in_host_memory_is_found() -> None:
    complaints = complaints_about_run(ask("runs", "fault: index from the host"))
    assert {"block 0: ahead: 1 x waits", "block 0: ahead: 1 x pageable_copies"} <= set(complaints)


def test_a_batch_in_host_memory_is_found() -> None:
    assert "same device" in error_of("fakes", "fault: batch on the host")


def test_a_filter_bank_in_nchw_is_found() -> None:
    told = ask("fakes", "fault: NCHW weight")
    complaints = complaints_about_layouts(told["layouts"], told["dtype"])
    assert complaints and all("weight" in line and "'channels_last': False" in line for line in complaints)


@pytest.mark.parametrize(("name", "succeeds"), [("not restored", False), ("not restored, no failure", True)])
def test_a_state_that_is_not_restored_is_found(name: str, succeeds: bool) -> None:
    complaints = complaints_about_recording(ask("failures", f"fault: {name}"), succeeds)
    assert any("changed" in line for line in complaints)


def test_a_stream_that_does_not_wait_is_found() -> None:
    complaints = complaints_about_run(ask("runs", "fault: rehearsal does not wait"))
    assert any("unordered" in line for line in complaints)


def test_a_block_that_is_not_waited_for_is_found() -> None:
    complaints = complaints_about_run(ask("runs", "fault: blocks are not waited for"))
    assert "block 0: the training does not wait until it is made" in complaints


def test_work_outside_the_recorded_stream_is_found() -> None:
    assert ask("failures", "launches outside")["while_recording"]["outside"] == 2  # one per image size


def test_an_update_that_does_not_wait_for_its_gradients_is_found() -> None:
    run = ask("fused_runs", "fault: the update does not wait")
    if not run["fused"]:
        pytest.skip(f"Triton does not run on the stub here: {run['said']}")
    complaints = complaints_about_run(run)
    assert run["missing_waits"] and any("does not wait" in line for line in complaints)
    assert any("outside" in line for line in complaints)
