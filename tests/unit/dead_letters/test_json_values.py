"""Copies of JSON values: what ``decode.is_plain`` accepts is copied part by part, all else is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.json_values import NotPlain, copy_of

TEXT = st.text('aZ0 é\U0001f600"\\/\0\ud800', max_size=6)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
TREE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)


class Number(IntEnum):
    ONE = 1


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"in": value}
    return value


@given(TREE)
def test_whatever_is_plain_is_copied_and_nothing_else(value: Any) -> None:
    if decode.is_plain(value):
        assert json.dumps(copy_of(value)) == json.dumps(value)
    else:
        with pytest.raises(NotPlain):
            copy_of(value)


def test_a_copy_shares_nothing_that_can_change() -> None:
    value = {"list": [{"a": 1}], "dict": {}}
    copy = copy_of(value)
    copy["list"][0]["a"], copy["dict"]["b"] = 2, 3
    copy["list"].append(4)
    assert value == {"list": [{"a": 1}], "dict": {}}


def test_depth_is_bounded() -> None:
    assert copy_of(nested(decode.MAX_DEPTH)) == nested(decode.MAX_DEPTH)
    with pytest.raises(NotPlain):
        copy_of(nested(decode.MAX_DEPTH + 1))


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, OrderedDict(a=1), Number.ONE, 10**400, b"x", {1, 2}])
def test_other_types_are_left_to_json(value: Any) -> None:
    with pytest.raises(NotPlain):
        copy_of(value)


@pytest.mark.parametrize(
    ("given", "stored"),
    [({"t": (1, 2)}, {"t": [1, 2]}), ({1: 2}, {"1": 2}), (OrderedDict(a=Number.ONE), {"a": 1}), ({}, {}), (None, {})],
)
def test_an_entry_has_its_arguments_as_they_are_read_back(given: Any, stored: dict[str, Any]) -> None:
    entry = record.new("op", given, "bad", given, str)
    assert entry.args == entry.metadata == stored
    read = record.decode(b"", record.encode(entry))
    assert read is not None and (read.args, read.metadata) == (stored, stored)


@pytest.mark.parametrize(
    "value", [{"x": float("nan")}, {"x": "\ud800"}, {"\ud800": 1}, {"x": {1, 2}}, {"x": 10**400}, [1]]
)
def test_arguments_that_are_no_json_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"args must be"):
        record.new("op", value, "bad", None, str)
