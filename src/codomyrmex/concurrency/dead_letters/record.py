"""A dead letter as it is stored and shown: the record, its value in etcd, and the making of a new one.

How a record changes is in ``steps.py``. Times are the writer's wall clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from codomyrmex.concurrency import decode as bounds
from codomyrmex.concurrency.dead_letters import transitions
from codomyrmex.concurrency.dead_letters.json_values import NotPlain, copy_of
from codomyrmex.concurrency.dead_letters.texts import MAX_TEXT, brief
from codomyrmex.concurrency.dead_letters.transitions import State as State
from codomyrmex.concurrency.decode import storable
from codomyrmex.concurrency.errors import PayloadTooLarge, text_of

Outcome = Literal["running", "ok", "failed", "crashed", "interrupted", "parked", "discarded"]

MAX_RECORD = 1 << 20  # bytes of a new record; etcd takes requests of 1.5 MiB
MAX_STORED = MAX_RECORD + (128 << 10)  # bytes of one that has been tried: room for its last attempt and a reason
_BRIEF = 1024  # characters that are kept of a text where a record has grown too large


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt of a worker on ``host``: when it began, by that host's clock, and how it ended."""

    number: int
    host: str
    pid: int
    time: datetime
    outcome: Outcome = "running"
    error: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed operation, as etcd stores it.

    ``attempts`` holds the last 20; ``attempt_count`` and ``crash_count`` count all since the entry was added or
    replayed. Tries that a pool made before it stored the entry are in ``metadata["attempts"]``, and count for neither.
    ``next_attempt_at`` is the time when the entry is due, None if it is not to be retried; ``delay`` is the pause until
    then, in seconds. ``fingerprint`` is the same for the same failure: operation, type of error, text without numbers.
    ``reason`` says why the entry was parked, after its last error, or why it was discarded.
    """

    id: str
    operation: str
    args: dict[str, Any]
    error: str
    created_at: datetime
    error_type: str = ""
    traceback: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    state: State = "waiting"
    attempts: tuple[AttemptRecord, ...] = ()
    attempt_count: int = 0
    crash_count: int = 0
    next_attempt_at: datetime | None = None
    delay: float = 0.0
    reason: str = ""
    dedup: str = ""
    key: Annotated[str, Field(exclude=True)] = ""  # not part of the value


class Stored(NamedTuple):
    """A record and the revision that wrote it."""

    entry: DeadLetter
    revision: int


_ADAPTER = TypeAdapter(DeadLetter)
_to_json = _ADAPTER.serializer.to_json
_SETTERS = {one.name: getattr(DeadLetter, one.name).__set__ for one in fields(DeadLetter)}
_values = attrgetter(*_SETTERS)


def now() -> datetime:
    """This host's wall clock, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new id. Ids sort by the time of their making, by their hosts' clocks; those of one process strictly."""
    global _latest
    _latest = max(_latest + 1, time.time_ns() // 1000)
    return f"{_latest:014x}{os.urandom(5).hex()}"


_latest = 0  # microseconds since 1970


def encode(entry: DeadLetter) -> bytes:
    """The value of a new record in etcd; raises ``PayloadTooLarge``."""
    return _checked(entry, _to_json(entry), MAX_RECORD)


def fitted(entry: DeadLetter) -> tuple[DeadLetter, bytes]:
    """The entry in a size that fits etcd, and its value there.

    An entry may grow too large by its attempts; then its history and its texts are shortened. Any record that
    ``encode`` took fits after that. Raises ``PayloadTooLarge`` only for a record that another client wrote.
    """
    value = _to_json(entry)
    if len(value) > MAX_STORED:
        entry = _shortened(entry)
        value = _to_json(entry)
    return entry, _checked(entry, value, MAX_STORED)


def _checked(entry: DeadLetter, value: bytes, limit: int) -> bytes:
    if len(value) > limit:
        raise PayloadTooLarge(
            f"the dead letter of {entry.operation!r} has {len(value)} bytes, and {limit} fit; store what is large "
            "elsewhere and put its address into args"
        )
    return value


def _shortened(entry: DeadLetter) -> DeadLetter:
    last = tuple(replace(attempt, error=brief(attempt.error, _BRIEF)) for attempt in entry.attempts[-1:])
    return changed(
        entry,
        attempts=last,
        reason=brief(entry.reason, _BRIEF),
        error=brief(entry.error, _BRIEF),
        traceback=entry.traceback[-_BRIEF:],
    )


def peek(value: bytes) -> tuple[str, str] | None:
    """The operation and the state in a value, at a fraction of the price of ``decode``; None if it has none.

    Only ``decode`` tells whether the library wrote the value.
    """
    try:
        found: _Peek = _to_peek(value)
    except ValueError:
        return None
    return found.operation, found.state


@dataclass(slots=True)
class _Peek:
    operation: str
    state: str


_to_peek = TypeAdapter(_Peek).validator.validate_json


def decode(key: bytes, value: bytes) -> DeadLetter | None:
    """The record that a value holds; None for a value that this library did not write."""
    entry = bounds.record(_ADAPTER, value)
    if entry is None:
        return None
    object.__setattr__(
        entry, "key", key.decode(errors="backslashreplace")
    )  # not shared yet; a copy costs as much again
    return entry


def new(
    operation: str,
    args: dict[str, Any],
    error: BaseException | str,
    metadata: dict[str, Any] | None,
    redact: Callable[[str], str],
    dedup_key: str | None = None,
) -> DeadLetter:
    """A new dead letter, due at once; raises ``TypeError`` or ``ValueError`` for values that cannot be stored."""
    if not isinstance(operation, str) or not operation or not operation.isprintable() or len(operation) > 512:
        raise ValueError(f"operation must be a printable str of 1 to 512 characters, not {operation!r}")
    args, metadata = _as_json("args", args), _as_json("metadata", metadata)
    text, kind, trace = _describe(error)
    text, trace = brief(redact(text)), storable(redact(trace))[-MAX_TEXT:]
    added = now()
    life = transitions.step(transitions.Life(), transitions.Event.ADDED, added)
    return DeadLetter(
        id=new_id(),
        operation=operation,
        args=args,
        error=text,
        created_at=added,
        error_type=kind,
        traceback=trace,
        metadata=metadata,
        fingerprint=fingerprint(operation, kind, text),
        state=life.state,
        next_attempt_at=life.due,
        dedup=hashlib.sha256(dedup_key.encode()).hexdigest() if dedup_key else "",
    )


_DATA = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+|'[^']*'|\"[^\"]*\"", re.IGNORECASE)


@lru_cache(128)  # an outage brings the same failure very often
def fingerprint(operation: str, error_type: str, error: str) -> str:
    """A hash of the failure without its data: numbers, hex and quoted parts of the error's text do not count."""
    shape = _DATA.sub("#", error)
    return hashlib.sha256("\0".join((operation, error_type, shape)).encode()).hexdigest()[:16]


def _as_json(name: str, value: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of ``value``, in the form in which it will be read back."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    try:
        plain: dict[str, Any] = copy_of(value)
        return plain
    except NotPlain:
        return _through_json(name, value)


def _through_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        copy: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} must be JSON (dict, list, str, finite numbers, bool, None): {error}") from None
    if not bounds.is_plain(copy):
        raise TypeError(f"{name} must be JSON of at most {bounds.MAX_DEPTH} levels, with finite numbers")
    return copy


def _describe(error: BaseException | str) -> tuple[str, str, str]:
    if isinstance(error, str):
        return error or "unknown error", "", ""
    if not isinstance(error, BaseException):
        raise TypeError(f"error must be an exception or its text, not {error!r}")
    trace = "".join(traceback.format_exception(error))
    return text_of(error) or type(error).__qualname__, type(error).__qualname__, trace


def copied(entry: DeadLetter) -> DeadLetter:
    """The same entry, with its own copy of arguments and metadata."""
    return changed(entry, args=copy_of(entry.args), metadata=copy_of(entry.metadata))


def changed(entry: DeadLetter, **changes: Any) -> DeadLetter:
    """The entry with other values of some fields, as ``dataclasses.replace`` makes it in three times the time."""
    copy = object.__new__(DeadLetter)
    for put, value in zip(_SETTERS.values(), _values(entry), strict=True):
        put(copy, value)
    for name, value in changes.items():
        _SETTERS[name](copy, value)
    return copy
