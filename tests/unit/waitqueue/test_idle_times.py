"""Holders without progress, over generated histories of a lock that is read now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.models import LockInfo, Owner
from codomyrmex.concurrency.waitqueue.idle_times import IdleTimes

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 5.0


steps = st.lists(st.sampled_from(["progress", "record", "grant", "read", "nothing", "nothing"]), max_size=40)


def owner(token: int, **more: Any) -> Owner:
    return Owner("host", 1, "a", "", token, None, key="k", **more)


def wrong(history: Sequence[str], times: IdleTimes) -> str:
    """Live a history, one event a second; says what the reader got wrong, or nothing.

    A holder is stuck when the reader has seen it before, at least ``LIMIT`` ago, and nothing but records have happened
    between that reading and the last one.
    """
    one = owner(1)
    changed = -1  # the second of the last grant or progress
    readings: list[int] = []
    for second, event in enumerate(history):
        if event == "progress":
            one, changed = replace(one, progress=one.progress + 1), second
        elif event == "record":
            one = replace(one, waited=1.0, granted_at=START)
        elif event == "grant":
            one, changed = owner(one.token + 1), second
        elif event == "read":
            readings.append(second)
            times.read([LockInfo("x", (one,), ())], second, START + timedelta(seconds=second))
            seen = next(reading for reading in readings if reading > changed)
            found = [(holder.owner, holder.idle_since) for holder in times.stuck(LIMIT, second)]
            if found != ([(one, START + timedelta(seconds=seen))] if second - seen >= LIMIT else []):
                return f"{found} at {second} of {history}"
    return ""


@given(steps)
def test_a_holder_is_stuck_when_two_readings_far_apart_show_no_progress(history: list[str]) -> None:
    assert wrong(history, IdleTimes()) == ""


class _ByTheNote(IdleTimes):
    def read(self, infos: Any, now: float, at: datetime) -> None:
        super().read([replace(info, holders=tuple(map(_unnumbered, info.holders))) for info in infos], now, at)


class _ByTheKey(IdleTimes):
    def read(self, infos: Any, now: float, at: datetime) -> None:
        super().read([replace(info, holders=tuple(map(_unnamed, info.holders))) for info in infos], now, at)


class _FromItsLastReading(IdleTimes):
    def read(self, infos: Any, now: float, at: datetime) -> None:
        self._first_seen.clear()
        super().read(infos, now, at)


class _ByAnyChange(IdleTimes):
    def read(self, infos: Any, now: float, at: datetime) -> None:
        known = [one for _, one in self._holders]
        if any(one not in known for info in infos for one in info.holders):
            self._first_seen.clear()
        super().read(infos, now, at)


def _unnumbered(one: Owner) -> Owner:
    return replace(one, progress=0)


def _unnamed(one: Owner) -> Owner:
    return replace(one, token=0)


HISTORIES = [
    ["read", *["nothing"] * 5, "read"],
    ["read", *["nothing"] * 3, "progress", "nothing", "read"],
    ["read", *["nothing"] * 3, "grant", "nothing", "read"],
    ["read", "nothing", "record", "read", "nothing", "nothing", "read"],
]


@pytest.mark.parametrize("broken", [_ByTheNote, _ByTheKey, _FromItsLastReading, _ByAnyChange])
def test_a_broken_reader_is_found(broken: type[IdleTimes]) -> None:
    assert any(wrong(history, broken()) for history in HISTORIES)
    assert not any(wrong(history, IdleTimes()) for history in HISTORIES)


def test_the_longest_idle_comes_first_and_waiters_are_none() -> None:
    times = IdleTimes()
    old, new = owner(1), replace(owner(2), key="n")
    times.read([LockInfo("b", (old,), (owner(9),))], 0.0, START)
    times.read([LockInfo("a", (new,), ()), LockInfo("b", (old,), (owner(9),))], 1.0, START)
    assert [(holder.name, holder.owner.token) for holder in times.stuck(2.0, 3.0)] == [("b", 1), ("a", 2)]
    times.read([], 3.0, START)
    assert times.stuck(0.0, 9.0) == []
