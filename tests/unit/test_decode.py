"""The decoder at the border: whatever lies in etcd is read or passed over, and what is read can be used."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from codomyrmex.concurrency import decode, keys
from codomyrmex.concurrency.cli.views import dead_letter_page, dead_letter_table, lock_table, pool_table, queue_table
from codomyrmex.concurrency.cli.views.text import age
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.models import ForcedRelease, LockEvent, LockInfo, Owner, to_json
from codomyrmex.concurrency.pool.cluster import _ADAPTER, ClusterPoolStats, _summed
from codomyrmex.concurrency.recipes.metadata import encode_metadata
from codomyrmex.concurrency.waitqueue.rules import Granted, Permits, Predecessor, View, WaitFor, holding
from tests import garbage

LAYOUT = keys.Layout("fleet")
QUEUE = LAYOUT.queue("s", keys.SEMAPHORE)
ENTRY = QUEUE + b"%016x-0" % 7
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

TEXT = st.text('aZ0 \u00e9\U0001f600"\\/\0\x1b\u202e\ud800', max_size=9)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
TREE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


def is_strict_json(value: Any) -> bool:
    """True if its JSON form is JSON for every reader."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = json.dumps(to_json(value), ensure_ascii=False)
    text.encode()
    json.loads(text, parse_constant=refuse)
    return True


def values(fields: dict[str, str]) -> st.SearchStrategy[bytes]:
    """Records of which any fields are garbage, of the bag or made up."""
    made_up = TREE.map(json.dumps)
    return st.fixed_dictionaries(
        {}, optional={name: st.just(good) | st.sampled_from(garbage.FIELDS) | made_up for name, good in fields.items()}
    ).map(garbage.record) | st.sampled_from(garbage.VALUES)


# Numbers in keys


@given(st.integers(0, decode.MAX_NUMBER))
def test_a_number_is_read_back(number: int) -> None:
    assert decode.number(b"%d" % number) == number


@given(st.binary(max_size=40) | st.from_regex(rb"[0-9]{1,40}", fullmatch=True) | st.sampled_from(garbage.NUMBERS))
def test_any_digits_are_a_number_in_range_or_none(digits: bytes) -> None:
    found = decode.number(digits)
    assert found is None or (0 <= found <= decode.MAX_NUMBER and b"%d" % found == digits)


@given(st.binary(max_size=40) | st.sampled_from(garbage.NUMBERS))
def test_any_number_in_a_key_is_passed_over_or_bounded(number: bytes) -> None:
    for key in (QUEUE + b"limit-" + number, ENTRY + b"." + number, LAYOUT.leases + number):
        limit = keys.limit_of(key)
        assert limit is None or keys.limit_key(QUEUE, limit) == key
        assert 0 <= keys.permits_of(key) <= decode.MAX_NUMBER
        lease = LAYOUT.lease_of(key)
        assert lease is None or LAYOUT.lease(lease) == key
        owner = Owner.from_entry(key, b"", 1, 7)
        assert is_strict_json(LockInfo("x", (owner,), ()))


@pytest.mark.parametrize("number", [b"9" * 5000, b"9223372036854775808", b"0", b"000"])
def test_a_claim_of_what_nobody_can_have_is_nobodys(number: bytes) -> None:
    key = ENTRY + b"." + number
    assert keys.permits_of(key) == 0 and keys.is_never_granted(key)
    assert not keys.is_never_granted(LAYOUT.queue("x") + b"%016x-0." % 7 + number)  # of a lock it takes its turn
    assert Permits(1)(View(5, (Predecessor(key, 2),), 1, limit=1)) == Granted()


@pytest.mark.parametrize(
    ("claim", "permits"), [(b"", 1), (b".2", 2), (b".x", 1), (b".02", 2), (b"." + b"0" * 5000 + b"2", 2)]
)
def test_who_may_hold_counts(claim: bytes, permits: int) -> None:
    assert keys.permits_of(ENTRY + claim) == permits and not keys.is_never_granted(ENTRY + claim)
    assert Permits(1)(View(5, (Predecessor(ENTRY + claim, 2),), 1, limit=permits)) == WaitFor(b"")
    assert holding([ENTRY + claim, ENTRY], permits) == 1


def test_the_lowest_of_several_limits_is_in_force() -> None:
    limits = [QUEUE + b"limit-" + number for number in (b"7", *garbage.NUMBERS, b"3", b"12")]
    assert keys.lowest_limit(limits) == 3
    assert keys.limit_of(QUEUE + b"deeper/limit-3") is None and keys.limit_of(LAYOUT.queue("x") + b"limit-3") is None


# Values


@UNTIMED
@given(values(garbage.OWNER))
def test_any_owner_can_be_shown(value: bytes) -> None:
    owner = Owner.from_entry(ENTRY, value, 7, 7)
    assert is_strict_json(owner) and age(owner.since)
    assert queue_table.queue("x", (owner,), ()).rows


def test_huge_texts_do_not_fill_a_table() -> None:
    value = garbage.record({**garbage.OWNER, **dict.fromkeys(("host", "task"), json.dumps("x" * 500_000))})
    owner = Owner.from_entry(ENTRY, value[:-1] + b', "metadata": {"a": "' + b"x" * 500_000 + b'"}}', 7, 7)
    assert len(owner.host) == len(owner.task) == 500_000
    console = Console(file=io.StringIO(), width=200)
    for table in (
        lock_table.locks([LockInfo("x", (owner,), (owner,))], wide=True),
        queue_table.queue("x", (owner,), ()),
    ):
        with console.capture() as shown:
            console.print(table)
        assert len(shown.get()) < 20_000
    line = lock_table.lock_event(LockEvent("granted", "x", owner, 7, LONG_AGO))
    assert len(line) < 2000


@UNTIMED
@given(values(garbage.FORCED))
def test_any_audit_record_can_be_shown(value: bytes) -> None:
    found = ForcedRelease.decode(value)
    assert found is None or (is_strict_json(found) and f"{found.at:%c}")


@UNTIMED
@given(values({**garbage.LETTER, "attempts": f"[{garbage.record(garbage.ATTEMPT).decode()}]"}))
def test_any_dead_letter_can_be_shown_compared_and_stored(value: bytes) -> None:
    entry = record.decode(b"k", value)
    if entry is not None:
        assert (
            is_strict_json(entry)
            and dead_letter_page.dead_letter(entry)
            and dead_letter_table.dead_letters([entry], wide=True)
        )
        assert entry.created_at >= LONG_AGO and 0 <= entry.delay <= decode.MAX_NUMBER
        assert record.decode(b"k", record.encode(entry)) == entry


@UNTIMED
@given(st.lists(values(garbage.POOL), max_size=3))
def test_any_pools_figures_can_be_summed_and_shown(reports: list[bytes]) -> None:
    found = [stats for value in reports if (stats := decode.record(_ADAPTER, value))]
    assert is_strict_json(_summed("crew", found)) and pool_table.pools([_summed("crew", found)], wide=True)
    assert pool_table.pool_line(_summed("crew", found)) and isinstance(_summed("crew", found), ClusterPoolStats)


@pytest.mark.parametrize("fields", [garbage.OWNER, garbage.FORCED, garbage.LETTER, garbage.POOL], ids=len)
def test_good_records_are_read_and_the_whole_bag_is_survived(fields: dict[str, str]) -> None:
    def read(value: bytes) -> object:
        owner = Owner.from_entry(ENTRY, value, 7, 7)
        found = owner.host or ForcedRelease.decode(value), record.decode(b"k", value), decode.record(_ADAPTER, value)
        return next(filter(None, found), None)

    assert read(garbage.record(fields)) is not None
    assert not any(map(read, garbage.VALUES))
    for value in garbage.broken(fields):
        read(value)


@given(st.binary())
def test_any_bytes_are_text_or_none(value: bytes) -> None:
    found = decode.text(value)
    assert found is None or found.encode() == value


@pytest.mark.parametrize("moment", ["2026-01-01T00:00:00", "1969-12-31T23:59:59Z", "9999-01-01T00:00:00Z"])
def test_a_time_without_a_zone_or_out_of_range_is_none_of_ours(moment: str) -> None:
    fields = {**garbage.LETTER, "created_at": json.dumps(moment)}
    assert record.decode(b"k", garbage.record(fields)) is None


# What users give


@UNTIMED
@given(TREE)
def test_what_is_plain_is_read_back_as_it_was(tree: Any) -> None:
    if decode.is_plain(tree):
        kept = letter({"tree": tree})
        assert record.decode(b"", record.encode(kept)) == kept and is_strict_json(kept)


@pytest.mark.parametrize(
    "tree",
    [float("nan"), float("inf"), 10**400, -(10**400), "\ud800", {"\udfff": 1}, (1,), {1: 2}, b"", [[{"a": {1}}]]],
    ids=repr,
)
def test_what_is_not_plain(tree: Any) -> None:
    assert not decode.is_plain(tree) and not decode.is_plain([{"a": tree}])


def nested(levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(levels - 1):
        tree = {"a": tree}
    return tree


def test_what_is_accepted_can_be_read_back_however_deep_and_large() -> None:
    deepest = {**nested(decode.MAX_DEPTH), "n": [sys.float_info.max, int(sys.float_info.max), -(2**200)]}
    kept = record.new("send", deepest, "e", deepest, str)
    assert record.decode(b"", record.encode(kept)) == kept and is_strict_json(kept)
    value = b'{"host":"h","pid":1' + encode_metadata(deepest).encode() + b',"since":1.0}'
    assert Owner.from_entry(ENTRY, value, 1, 7).metadata == deepest


@pytest.mark.parametrize("tree", [nested(decode.MAX_DEPTH + 1), nested(300), {"n": 10**400}])
def test_what_could_not_be_read_back_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="args must be JSON"):
        record.new("send", tree, "e", None, str)
    with pytest.raises(ValueError, match="metadata may nest"):
        encode_metadata(tree)


def test_metadata_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode_metadata({"a": "\ud800"})


def letter(args: dict[str, Any]) -> DeadLetter:
    return DeadLetter("1", "send", args, "e", LONG_AGO + timedelta(days=20_000))
