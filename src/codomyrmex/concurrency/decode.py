"""Decodes values, and numbers in keys, that were read from etcd. Pure; no function here raises.

Any client with access to the namespace can write anything there. Each function returns the decoded value, or None if
the library would not have written it. A decoded value can be compared, summed up, shown and written again:

    numbers   in keys up to 2**63 - 1, as etcd counts; in records the same, and not negative; in users' JSON finite
    times     with a zone, from 1970 to 9998, so that they can be subtracted and shown in any zone
    texts     valid in UTF-8: no lone surrogates
    nesting   of users' JSON up to 100 levels

``is_plain`` checks the values that users store, so that every accepted value can be read back.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_NUMBER = 2**63 - 1
MAX_DEPTH = 100
_MAX_BYTES = 2 << 20  # etcd takes requests of 1.5 MiB
_MAX_DIGITS = len(str(MAX_NUMBER))
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9998, 12, 31, tzinfo=UTC)

T = TypeVar("T")


def number(digits: bytes) -> int | None:
    """The number whose decimal form is ``digits``, or None."""
    if not digits.isdigit() or len(digits) > _MAX_DIGITS or (digits[:1] == b"0" and digits != b"0"):
        return None
    found = int(digits)
    return found if found <= MAX_NUMBER else None


def text(value: bytes) -> str | None:
    """The text whose UTF-8 is ``value``, or None."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def record(adapter: TypeAdapter[T], value: bytes) -> T | None:
    """The dataclass whose JSON is ``value``, or None."""
    if len(value) > _MAX_BYTES:
        return None
    try:
        found = adapter.validate_json(value)
    except ValueError:  # as pydantic's is
        return None
    return found if _is_sound(found) else None


def storable(text: str) -> str:
    """The text with escapes for the characters that UTF-8 cannot hold."""
    return text.encode(errors="backslashreplace").decode()


def is_plain(value: object) -> bool:
    """True if ``value`` is JSON that can be stored and is read back unchanged."""
    left = [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, str):
            if not is_storable(one):
                return False
        elif isinstance(one, (int, float)):
            if not abs(one) <= sys.float_info.max:  # nor is it NaN
                return False
        elif isinstance(one, (dict, list)):
            if depth > MAX_DEPTH:
                return False
            if isinstance(one, dict) and not all(isinstance(key, str) and is_storable(key) for key in one):
                return False
            left += [(item, depth + 1) for item in (one.values() if isinstance(one, dict) else one)]
        elif one is not None:
            return False
    return True


def _is_sound(record: object) -> bool:
    """True if a record, with all its parts, is within the bounds. pydantic has checked its texts and types."""
    left = [record]
    while left:
        one = left.pop()
        kind = type(one)
        if kind is str or one is None or kind is bool:
            continue
        if kind is int or kind is float:
            if not 0 <= one <= MAX_NUMBER:  # type: ignore[operator]
                return False
        elif isinstance(one, datetime):
            if one.tzinfo is None or not _EARLIEST <= one <= _LATEST:
                return False
        elif isinstance(one, tuple):
            left += one
        elif dataclasses.is_dataclass(kind):
            left += _parts(kind)(one)
        elif one and not is_plain(one):
            return False
    return True


@lru_cache
def _parts(kind: Hashable) -> Callable[[object], tuple[object, ...]]:
    """A function that returns the values of all fields of a dataclass, which has two or more."""
    assert isinstance(kind, type)
    return attrgetter(*(field.name for field in dataclasses.fields(kind)))


def is_storable(value: str) -> bool:
    """True if UTF-8 can hold the text."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False
