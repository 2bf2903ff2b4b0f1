"""The stub itself: what it carries out and counts, and that it refuses in a capture what CUDA refuses."""

import pytest
import stub
from results import ask, marks

pytestmark = marks

SPOILED = "previous error during capture"


def test_copies_and_fills_are_carried_out() -> None:
    told = ask("basics", "carries out")
    assert told == {"copied": True, "zeroed": [0.0] * 4, "filled": [2.5] * 3, "counted": 3, "all finite": True}


def test_what_is_asked_for_is_counted() -> None:
    told = ask("basics", "counts")
    assert told["add"] == {"launches": 1}
    assert told["product"] == {"launches": 1, "library_calls": 1}
    assert told["fill"] == {"launches": 1}
    assert told["clone"] == {"copies_on_device": 1}
    assert told["to the card, pinned"] == {"copies_to_device": 1}
    assert told["to the card"] == {"copies_to_device": 1, "pageable_copies": 1, "waits": 1}
    assert told["item"]["copies_to_host"] == told["item"]["waits"] == 1
    assert told["synchronize"] == {"waits": 1}


def test_kernels_are_known_by_name() -> None:
    kernels = ask("basics", "names")
    assert any("FillFunctor<float>" in name for name in kernels) and any("silu" in name for name in kernels)


def test_a_graph_does_at_each_replay_what_was_recorded() -> None:
    told = ask("basics", "replays")
    assert told["before"] == [[0.0] * 4, [0.0] * 2, [9.0] * 2, [0]]
    assert told["after"] == [[0.0, 1.0, 2.0, 3.0], [7.0] * 2, [0.0] * 2, [3]]
    assert told["recording"]["captured"] == 4 and told["replaying"] == {"replays": 3}


@pytest.mark.parametrize(
    ("what", "error", "counted"),
    [
        ("nothing", "", None),
        ("fork, joined", "", None),
        ("launch outside", "", "outside"),
        ("item", SPOILED, "illegal"),
        ("synchronize", SPOILED, "illegal"),
        ("query", SPOILED, "illegal"),
        ("fork, not joined", "unjoined work", "illegal"),
        ("wait for earlier work", SPOILED, "illegal"),
        ("a launch fails", SPOILED, None),
    ],
)
def test_a_capture_refuses_what_cuda_refuses(what: str, error: str, counted: str | None) -> None:
    told = ask("basics", f"capture: {what}")
    assert error in told["error"] and bool(error) == bool(told["error"])
    assert {"illegal", "outside"} & set(told["counted"]) == ({counted} if counted else set())


def test_streams_that_nothing_puts_in_order_are_counted() -> None:
    told = ask("basics", "order")
    assert {name for name, unordered in told.items() if unordered} == {"nothing", "wait the other way round"}


def test_memory_can_run_out() -> None:
    told = ask("basics", "out of memory")
    assert "out of memory" in told["error"] and told["afterwards"] == 1 << 28


def test_counters_have_the_names_of_the_header() -> None:
    header = (stub.HERE / "card.h").read_text()
    names = header.partition("enum counter {")[2].partition("NUM_COUNTERS")[0]
    in_header = [
        line.strip().partition(",")[0].lower() for line in names.splitlines() if "," in line.partition("//")[0]
    ]
    assert tuple(in_header) == stub.COUNTERS
