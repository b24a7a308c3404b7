"""Values read from etcd may be anything: decoding never raises, and keeps the fields that it knows."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.keys import session_of
from codomyrmex.concurrency.models import ForcedRelease, Owner, to_json

anything = st.binary() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["host", "pid", "since", "task", "x"]), inner),
).map(lambda value: json.dumps(value).encode())


@given(st.binary(), anything)
def test_any_entry_is_an_owner(key: bytes, value: bytes) -> None:
    owner = Owner.from_entry(key, value, 7, 0xAB)
    assert owner.token == 7 and owner.session == f"{session_of(key) or 0xAB:016x}"
    json.dumps(to_json(owner))


@given(anything)
def test_any_audit_record_is_one_or_none(value: bytes) -> None:
    record = ForcedRelease.decode(value)
    assert record is None or isinstance(record, ForcedRelease)


@given(st.text(), st.integers(0, 2**63 - 1), st.text(), st.text())
def test_an_audit_record_survives_a_round_trip(name: str, token: int, reason: str, by: str) -> None:
    record = ForcedRelease(name, token, reason, by, datetime(2026, 1, 2, tzinfo=UTC))
    assert ForcedRelease.decode(record.encode()) == record
