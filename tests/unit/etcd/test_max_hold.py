"""Limits of holds: which entries are due, and what happens to one that etcd does not answer for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd import max_hold
from codomyrmex.concurrency.etcd.max_hold import HoldLimits


class Client:
    def __init__(self) -> None:
        self.away = False
        self.removed: list[tuple[bytes, int]] = []

    def remove(self, key: bytes, create_revision: int, timeout: float) -> None:
        if self.away:
            raise EtcdUnavailable("no answer")
        self.removed.append((key, create_revision))


def test_an_entry_is_due_at_its_limit_and_a_lifted_one_never() -> None:
    limits = HoldLimits(cast(Any, Client()))
    limits.limit(b"a", 5, 10.0)
    limits.limit(b"b", 6, 11.0)
    assert limits.due(9.9) == []
    assert limits.due(10.0) == [(b"a", 5)]
    limits.lift(b"a")
    assert limits.due(20.0) == [(b"b", 6)]


def test_a_newer_entry_under_the_same_key_has_its_own_limit() -> None:
    limits = HoldLimits(cast(Any, Client()))
    limits.limit(b"a", 5, 10.0)
    limits.limit(b"a", 9, 30.0)
    assert limits.due(20.0) == []
    assert limits.due(30.0) == [(b"a", 9)]


def test_what_etcd_does_not_answer_for_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_hold.clock, "now", lambda: 10.0)
    client = Client()
    limits = HoldLimits(cast(Any, client))
    limits.limit(b"a", 5, 10.0)
    client.away = True
    limits.enforce(1.0)
    assert limits.due(10.0) == [(b"a", 5)]
    client.away = False
    limits.enforce(1.0)
    limits.enforce(1.0)
    assert client.removed == [(b"a", 5)] and limits.due(10.0) == []
