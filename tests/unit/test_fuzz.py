"""Any key under the prefix, and any text at the command line, is read, refused or skipped, and never crashes."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import keys
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.views import dead_letter_table, owners
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.models import ForcedRelease, Owner, to_json
from codomyrmex.concurrency.waitqueue.rules import holding

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("host", "pid", "task", "since", "metadata", "id", "operation", "args", "error", "created_at", "state", "name")
VALUES = st.binary(max_size=60) | st.builds(
    lambda value: json.dumps(value).encode(), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON)
)


@given(st.binary(max_size=60), VALUES, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_any_entry_has_an_owner_that_can_be_shown(key: bytes, value: bytes, revision: int, lease: int) -> None:
    owner = Owner.from_entry(key, value, revision, lease)
    assert json.dumps(to_json(owner)) and owners.owner(owner).isprintable()
    assert owner.permits >= 0 and holding([key, key], 3) <= 2


@given(st.binary(max_size=60), VALUES)
def test_any_value_is_a_dead_letter_or_none(key: bytes, value: bytes) -> None:
    entry = record.decode(key, value)
    if entry is not None:
        assert dead_letter_table.due(entry) and dead_letter_table.dead_letter_line(entry).plain.isprintable()
    ForcedRelease.decode(value)


@given(st.binary(max_size=80))
def test_any_key_is_one_of_ours_or_not(key: bytes) -> None:
    layout = keys.Layout("fleet")
    for whole in (key, layout.under(keys.LOCK) + key, layout.under(keys.SEMAPHORE) + key):
        for kind in (keys.LOCK, keys.SEMAPHORE):
            name = layout.name_of(whole, kind)
            assert name is None or keys.escape(name)
        layout.lease_of(whole)
        assert (keys.limit_of(whole) or 0) >= 0


@given(st.text(), st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.text(max_size=50))
def test_what_is_stored_is_read_back_as_it_was(error: str, args: dict[str, Any], operation: str) -> None:
    try:
        entry = record.new(operation, args, error, None, str)
    except (TypeError, ValueError):
        return
    assert record.decode(b"", record.encode(entry)) == entry


@given(st.text())
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        assert Duration().convert(text, None, None) >= 0
    except click.BadParameter as error:
        assert str(error)


@pytest.mark.parametrize("text", ["5" * 400 + "s", "99999999999d", "1e5s", "-1s", "", "s"])
def test_odd_durations_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)
