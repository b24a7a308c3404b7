"""A dead letter as it is stored and shown, and how it changes: functions from one record to the next.

Every step of an entry's life is one of the functions here; ``store.py`` writes what they return, in a transaction that
compares the record they were given. Times are the writer's wall clock and only shown, or used where nobody has
watched the entry (see ``worker.py``); delays are what counts.

    state      on                                     becomes
    waiting    claimed by a worker                    running
    running    the handler returned, or discards      resolved
    running    it failed, attempts are left           waiting, due after a delay
    running    it failed, none are left; or parks     parked
    running    its worker died                        waiting, or parked when it has killed too many
    any but running   replayed by a person            waiting, due now, attempts counted from zero
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode as bounds
from codomyrmex.concurrency.decode import storable
from codomyrmex.concurrency.errors import PayloadTooLarge, text_of
from codomyrmex.concurrency.retry import RetryPolicy

log = logging.getLogger("codomyrmex.concurrency")

State = Literal["waiting", "running", "resolved", "parked"]
Outcome = Literal["running", "ok", "failed", "crashed", "interrupted", "parked", "discarded"]

MAX_RECORD = 1 << 20  # bytes of a new record; etcd takes requests of 1.5 MiB
MAX_STORED = MAX_RECORD + (128 << 10)  # bytes of one that has been tried: room for its last attempt and a reason
MAX_TEXT = 8 * 1024  # characters of an error, a reason or a traceback; of a traceback the end is kept
MAX_DELAY = 10 * 365 * 86_400.0  # seconds; what is to wait for longer is due then
_BRIEF = 1024  # characters that are kept of a text where a record has grown too large
MAX_HISTORY = 20
MAX_CRASHES = 3


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt: who made it, when it began, by that host's clock, and how it ended."""

    number: int
    host: str
    pid: int
    time: datetime
    outcome: Outcome = "running"
    error: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed operation as etcd has it.

    ``attempts`` holds the last 20; ``attempt_count`` and ``crash_count`` count all since the entry was added or
    replayed. What a pool had tried before it stored the entry is in ``metadata["attempts"]``, and counts for neither.
    ``next_attempt_at`` is when it is due, None if it is not to be retried. ``fingerprint`` is the same for the same
    failure: operation, type of error, its text without numbers. ``reason`` says why it was parked, after its last
    error, or why it was discarded.
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
    key: str = ""


_ADAPTER = TypeAdapter(DeadLetter)


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    """Sorts by the time it was made, by this host's clock; those of one process in the order of their making."""
    global _latest
    _latest = max(_latest + 1, time.time_ns() // 1000)
    return f"{_latest:014x}{secrets.token_hex(5)}"


_latest = 0  # microseconds since 1970


def encode(entry: DeadLetter) -> bytes:
    """The value in etcd of a new record; raises ``PayloadTooLarge``."""
    return _checked(entry, _ADAPTER.dump_json(entry, exclude={"key"}), MAX_RECORD)


def fitted(entry: DeadLetter) -> tuple[DeadLetter, bytes]:
    """The entry as it fits etcd, and its value. What an entry gathers in its life may make it too large: then its
    history and its texts are shortened. A record that ``encode`` took fits by then, whatever its attempts said.

    Raises ``PayloadTooLarge`` only for a record that another client wrote.
    """
    value = _ADAPTER.dump_json(entry, exclude={"key"})
    if len(value) > MAX_STORED:
        entry = _shortened(entry)
        value = _ADAPTER.dump_json(entry, exclude={"key"})
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
    return replace(
        entry,
        attempts=last,
        reason=brief(entry.reason, _BRIEF),
        error=brief(entry.error, _BRIEF),
        traceback=entry.traceback[-_BRIEF:],
    )


def decode(key: bytes, value: bytes) -> DeadLetter | None:
    """The record, or None if it is none of ours."""
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
    """A dead letter that is due at once; raises ``TypeError`` or ``ValueError`` for what cannot be stored."""
    if not isinstance(operation, str) or not operation or not operation.isprintable() or len(operation) > 512:
        raise ValueError(f"operation must be a printable str of 1 to 512 characters, not {operation!r}")
    args, metadata = _as_json("args", args), _as_json("metadata", metadata)
    text, kind, trace = _describe(error)
    text, trace = brief(redact(text)), storable(redact(trace))[-MAX_TEXT:]
    return DeadLetter(
        id=new_id(),
        operation=operation,
        args=args,
        error=text,
        created_at=now(),
        error_type=kind,
        traceback=trace,
        metadata=metadata,
        fingerprint=fingerprint(operation, kind, text),
        next_attempt_at=now(),
        dedup=hashlib.sha256(dedup_key.encode()).hexdigest() if dedup_key else "",
    )


def fingerprint(operation: str, error_type: str, error: str) -> str:
    """The same for the same failure of different data: what is numbers, hex or quoted in the text does not count."""
    shape = re.sub(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+|'[^']*'|\"[^\"]*\"", "#", error, flags=re.IGNORECASE)
    return hashlib.sha256("\0".join((operation, error_type, shape)).encode()).hexdigest()[:16]


def _as_json(what: str, value: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of ``value`` as it will be read back."""
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{what} must be a dict, not {type(value).__name__}")
    try:
        text = json.dumps(value or {}, allow_nan=False, ensure_ascii=False)
        text.encode()
        copy: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} must be JSON (dict, list, str, finite numbers, bool, None): {error}") from None
    if not bounds.is_plain(copy):
        raise TypeError(f"{what} must be JSON of at most {bounds.MAX_DEPTH} levels, with finite numbers")
    return copy


def _describe(error: BaseException | str) -> tuple[str, str, str]:
    if isinstance(error, str):
        return error or "unknown error", "", ""
    if not isinstance(error, BaseException):
        raise TypeError(f"error must be an exception or its text, not {error!r}")
    trace = "".join(traceback.format_exception(error))
    return text_of(error) or type(error).__qualname__, type(error).__qualname__, trace


def brief(text: str, limit: int = MAX_TEXT) -> str:
    """``text`` as it can be stored, with at most ``limit`` characters; one that is shortened says so."""
    text = storable(text)
    return text if len(text) <= limit else f"{text[: limit - len(_CUT)]}{_CUT}"


_CUT = "... (shortened)"


def shown(value: object) -> str:
    """The ``repr`` of what cannot be stored as it is."""
    try:
        return brief(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"(a {type(value).__qualname__}, whose repr() raised {type(error).__qualname__})"


def total(redact: Callable[[str], str]) -> Callable[[str], str]:
    """``redact`` as it can be called where nothing may fail: where it raises, or returns no text, nothing of the text
    is told."""

    def redacted(text: str) -> str:
        try:
            told = redact(text)
            if isinstance(told, str):
                return told
            problem = f"it returned {type(told).__name__}, not str"
        except Exception as error:
            problem = f"it raised {type(error).__name__}"
        log.error("redact= failed, so the text of an error is withheld: %s", problem)
        return f"(withheld: redact= failed, {problem})"

    return redacted


def copied(entry: DeadLetter) -> DeadLetter:
    """The same entry, with arguments and metadata of its own."""
    return replace(entry, args=deepcopy(entry.args), metadata=deepcopy(entry.metadata))


# Steps


def claimed(entry: DeadLetter, host: str) -> DeadLetter:
    """A worker takes the entry: the attempt counts from here on, whatever becomes of the worker."""
    attempt = AttemptRecord(entry.attempt_count + 1, host, os.getpid(), now())
    return replace(
        entry,
        state="running",
        attempt_count=attempt.number,
        attempts=(*entry.attempts, attempt)[-MAX_HISTORY:],
        next_attempt_at=None,
        delay=0.0,
    )


def resolved(entry: DeadLetter, outcome: Outcome = "ok", reason: str = "") -> DeadLetter:
    return replace(entry, attempts=_ended(entry, outcome, reason), state="resolved", reason=brief(reason))


def parked(entry: DeadLetter, reason: str, outcome: Outcome = "parked") -> DeadLetter:
    return replace(ended(entry, outcome, reason), state="parked", reason=brief(reason))


def failed(entry: DeadLetter, error: BaseException, text: str, policy: RetryPolicy) -> DeadLetter:
    """The handler failed: the entry waits for the next attempt, or is parked after the last."""
    if not policy.again(error, entry.attempt_count):
        why = _USED_UP if entry.attempt_count >= policy.max_attempts else "such an error is not to be retried"
        return parked(ended(entry, "failed", text), _because(text, why))
    return waiting(ended(entry, "failed", text), policy.delay(entry.attempt_count))


def asked_again(entry: DeadLetter, asked: str, delay: float | None, policy: RetryPolicy) -> DeadLetter:
    """The handler asked for another attempt: the entry waits for it, or is parked after the last."""
    if entry.attempt_count >= policy.max_attempts:
        told = f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
        return parked(ended(entry, "failed", asked), _because(told, _USED_UP))
    return waiting(ended(entry, "failed", asked), policy.delay(entry.attempt_count) if delay is None else delay)


_USED_UP = "attempts are used up"


def _because(error: str, why: str) -> str:
    """The reason to park an entry: its error first, for that is what is looked for, and why it is not tried again."""
    room = MAX_TEXT - len(why) - len(" ()")
    return f"{brief(error, room)} ({why})"


def interrupted(entry: DeadLetter) -> DeadLetter:
    """The worker was told to stop: the attempt is not held against the entry, which is due again at once."""
    return replace(waiting(ended(entry, "interrupted", ""), 0.0), attempt_count=max(0, entry.attempt_count - 1))


def crashed(entry: DeadLetter, policy: RetryPolicy) -> DeadLetter:
    """The worker is gone and the claim with it: that costs the entry an attempt and a crash."""
    entry = replace(ended(entry, "crashed", "the worker died"), crash_count=entry.crash_count + 1)
    if entry.crash_count >= MAX_CRASHES:
        return parked(entry, f"killed {entry.crash_count} workers", "crashed")
    if entry.attempt_count >= policy.max_attempts:
        return parked(entry, _because("the worker died", _USED_UP))
    return waiting(entry, policy.delay(entry.attempt_count))


def waiting(entry: DeadLetter, delay: float) -> DeadLetter:
    delay = min(delay, MAX_DELAY)
    return replace(entry, state="waiting", delay=delay, next_attempt_at=now() + timedelta(seconds=delay), reason="")


def replayed(entry: DeadLetter) -> DeadLetter:
    """Back to due, now, with all its attempts before it; the history stays."""
    return replace(waiting(entry, 0.0), attempt_count=0, crash_count=0)


def ended(entry: DeadLetter, outcome: Outcome, error: str) -> DeadLetter:
    """The attempt under way has ended."""
    return replace(entry, attempts=_ended(entry, outcome, error))


def _ended(entry: DeadLetter, outcome: Outcome, error: str) -> tuple[AttemptRecord, ...]:
    if not entry.attempts or entry.attempts[-1].outcome != "running":
        return entry.attempts
    return (*entry.attempts[:-1], replace(entry.attempts[-1], outcome=outcome, error=brief(error)))
