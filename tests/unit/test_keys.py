"""Names become keys injectively, each within its own queue, and come back as they were."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import InvalidName
from codomyrmex.concurrency.keys import (
    LOCK,
    MAX_NAME_BYTES,
    Layout,
    check_name,
    escape,
    forms,
    is_writer,
    name_in,
    nfc,
    prefix_end,
    session_of,
    unescape,
)

LAYOUT = Layout("fleet")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
HOSTILE = st.sampled_from(["/", "..", "../x", "a/b", "%2F", "%", "a%", "\0", "é", "😀", "a", "a/", "%2f"])
NAME = TEXT | HOSTILE


@given(NAME)
def test_escaping_survives_a_round_trip_and_stays_one_segment(name: str) -> None:
    segment = escape(name)
    assert unescape(segment) == name
    assert "/" not in segment and segment.isascii() and segment.isprintable() and " " not in segment


@given(NAME, NAME)
def test_escaping_is_injective(one: str, two: str) -> None:
    assert (escape(one) == escape(two)) == (one == two)


@given(NAME, NAME)
def test_a_prefix_stays_a_prefix(one: str, two: str) -> None:
    assert escape(one + two) == escape(one) + escape(two)


@given(NAME, NAME, st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_no_queue_reaches_into_another(one: str, two: str, lease: int, nonce: int) -> None:
    queue = LAYOUT.queue(one)
    key = LAYOUT.entry(LAYOUT.queue(two), lease, nonce)
    assert (queue <= key < prefix_end(queue)) == (one == two)
    assert LAYOUT.name_of(key) == two and session_of(key) == lease
    assert LAYOUT.leases <= key < prefix_end(LAYOUT.under(LOCK))  # what an observer watches


@given(st.text(st.characters(codec="ascii"), max_size=30))
def test_only_canonical_segments_are_ours(segment: str) -> None:
    name = unescape(segment)
    assert name is None or escape(name) == segment


@pytest.mark.parametrize("segment", ["%41", "%2f", "%FF", "%", "a b", "%zz"])
def test_a_segment_we_would_not_write_is_not_ours(segment: str) -> None:
    assert unescape(segment) is None


@pytest.mark.parametrize(
    "key", [b"", b"/other/v1/lock/x/1-0", b"/fleet/v1/lock/", b"/fleet/v1/lock/x", b"/fleet/v1/lock//1-0"]
)
def test_keys_of_others_have_no_name(key: bytes) -> None:
    assert LAYOUT.name_of(key) is None


@given(st.integers(0, 2**63 - 1))
def test_a_session_key_tells_its_lease(lease: int) -> None:
    assert LAYOUT.lease_of(LAYOUT.lease(lease)) == lease
    assert LAYOUT.lease_of(LAYOUT.entry(LAYOUT.queue("x"), lease, 0)) is None


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=10))
def test_a_prefix_end_bounds_exactly_the_prefix(prefix: bytes, rest: bytes) -> None:
    end = prefix_end(prefix)
    if end != b"\0":
        assert prefix + rest < end
        assert not end.startswith(prefix)


@given(st.text(max_size=700))
def test_a_name_is_accepted_or_refused_with_a_reason(name: str) -> None:
    try:
        check_name(name)
    except InvalidName as error:
        assert "a name m" in str(error)
    else:
        assert 0 < len(nfc(name).encode()) <= MAX_NAME_BYTES and "\0" not in name and "\n" not in name


# Letters that are written in several ways: composed, with marks in any order, as one sign of their own, in jamo.
WRITTEN = st.text(st.sampled_from("eéậÅ가a/\u0301\u0323\u0307\u212b\u1100\u1161"), min_size=1, max_size=20)


@given(WRITTEN | TEXT.filter(str.isprintable))
def test_all_spellings_of_a_name_are_one_name(name: str) -> None:
    composed = check_name(name)
    assert check_name(unicodedata.normalize("NFD", name)) == composed
    assert check_name(composed) == composed and unicodedata.is_normalized("NFC", composed)


@given(WRITTEN, WRITTEN)
def test_names_that_differ_in_more_than_their_spelling_stay_apart(one: str, two: str) -> None:
    same = unicodedata.normalize("NFD", one) == unicodedata.normalize("NFD", two)
    assert (check_name(one) == check_name(two)) == same


@given(WRITTEN | TEXT)
def test_the_forms_of_a_name_are_apart_and_the_one_in_use_comes_first(name: str) -> None:
    first, *others = forms(name)
    assert first == nfc(name) and name in (first, *others) and unicodedata.normalize("NFD", name) in (first, *others)
    assert all(nfc(other) == first and other != first for other in others)
    starts = [escape(form) for form in forms(name)]
    assert not any(one != two and two.startswith(one) for one in starts for two in starts)  # nothing is read twice


@given(WRITTEN)
def test_a_name_that_lies_in_etcd_is_told_in_its_own_form(name: str) -> None:
    for form in forms(name):
        assert name_in(escape(form).encode()) == form


def test_only_entries_of_exclusive_holders_and_waiters_are_writers() -> None:
    layout = Layout("n")
    queue = layout.queue("a.r-0000000000000001-0")
    assert is_writer(layout.entry(queue, 7, 3))
    assert not is_writer(layout.entry(queue, 7, 3, b".r"))
    assert not is_writer(layout.entry(queue, 7, 3, b".2"))
    assert not is_writer(queue + b"7f3a")  # etcdctl's


def test_a_baton_lies_outside_all_queues_and_tells_them_apart() -> None:
    layout = Layout("n")
    entry = layout.entry(layout.queue("a"), 7, 3)
    assert layout.release_marker(entry) == b"/n/v1/baton/lock/a/0000000000000007-3"
    assert layout.is_ours(layout.release_marker(entry)) and layout.name_of(layout.release_marker(entry)) is None
