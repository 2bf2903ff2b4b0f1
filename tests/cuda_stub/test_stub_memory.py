"""No memory is used again before it was read: a block's by the next ones, a graph's buffers until its last replay."""

from checks import complaints_about_run
from results import ask, marks

pytestmark = marks


def test_memory_that_another_stream_reads_is_not_written() -> None:
    assert ask("memory", "used again") == 1
    assert ask("memory", "used again, recorded stream") in (0, -1)  # -1: the allocator gave other memory
    assert ask("memory", "used again after a wait") == 0


def test_a_graph_that_reads_freed_memory_is_counted() -> None:
    told = ask("memory", "freed under a graph")
    assert told["before"] == {"replays": 1} and told["after"] == {"replays": 1, "freed": 1}


def test_blocks_stay_until_the_training_has_read_them() -> None:
    told = ask("memory", "many blocks")
    assert told["recorded"] and told["counted"]["replays"] == 9
    assert {"waits", "reused", "unordered"} & set(told["counted"]) == set()
    assert len(set(told["places"])) == 9  # all events are late


def test_each_tensor_of_a_block_is_kept_for_the_training() -> None:
    """Dropped, its memory is not given away before the event that the allocator records on the training's stream."""
    assert set(ask("memory", "states of a block").values()) == {"active_pending_free"}


def test_a_block_that_the_allocator_gives_away_too_early_is_found() -> None:
    told = ask("memory", "fault: no record_stream")
    assert told["counted"]["reused"] > 0 and len(set(told["places"])) < 9


def test_buffers_that_are_replaced_under_a_graph_are_found() -> None:
    complaints = complaints_about_run(ask("memory", "fault: buffers replaced"))
    assert "graphs read 1 buffers that are no more" in complaints
