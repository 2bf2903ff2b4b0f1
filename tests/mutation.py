"""Damage to files as a hypothesis strategy, so that what breaks is shrunk to the smallest edit that still breaks it."""

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FASTCIFAR_FUZZ_EXAMPLES", "25"))
"""Damaged files per format; `make full-test` takes 1,000."""

many = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=timedelta(seconds=10),  # a hang is a failure too
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

WORDS = (b"-1", b"NaN", b"1e999", b'"', b"{", b"]", b"\0", b"99999999", b"\x7f" * 8, b"\xff" * 8, b"\0" * 8)
_place = st.one_of(st.floats(0, 1), st.integers(0, 600))
_edit = st.one_of(
    st.tuples(st.just("flip"), _place, st.integers(0, 7)),
    st.tuples(st.just("flip"), _place, st.integers(0, 7)),
    st.tuples(st.just("cut"), _place, st.just(0)),
    st.tuples(st.just("put"), _place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("over"), _place, st.one_of(st.sampled_from(WORDS), st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("take"), _place, st.sampled_from([1, 2, 8, 64, 6400])),
    st.tuples(st.just("head"), _place, st.sampled_from([1, 8, 64])),
)
edits = st.lists(_edit, min_size=1, max_size=5)
"""One to five edits: a kind, a place (a fraction of the file, or a byte near its beginning), and what to do there."""


def damaged(content: bytes, edits: list) -> bytes:
    """The content after the edits: flipped bits, a cut, bytes put in, written over or taken out, its head once more."""
    changed = bytearray(content)
    for kind, place, what in edits:
        at = min(len(changed), place if isinstance(place, int) else int(place * len(changed)))
        if kind == "flip" and at < len(changed):
            changed[at] ^= 1 << what
        elif kind == "cut":
            del changed[at:]
        elif kind == "put":
            changed[at:at] = what
        elif kind == "over":
            changed[at : at + len(what)] = what
        elif kind == "take":
            del changed[at : at + what]
        elif kind == "head":
            changed[at:at] = changed[:what]
    return bytes(changed)
