"""When trust in a lease ends, when the next keepalive is sent and how long it may take; the keepalive's decisions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import keepalive as keepalive_module
from codomyrmex.concurrency.etcd.keepalive import Keepalive
from codomyrmex.concurrency.etcd.lease_trust import LeaseTrust
from codomyrmex.concurrency.etcd.transports.failures import LEASE_NOT_FOUND
from codomyrmex.concurrency.etcd.transports.protocol import Lease

TTL = 6.0


def test_trust_ends_two_thirds_of_a_ttl_after_the_keepalive_was_sent() -> None:
    trust = LeaseTrust(TTL, 100.0)
    assert trust.remaining(100.0) == 4.0
    trust.renewed(TTL, sent_at=102.0, now=103.5)  # the answer took a second and a half
    assert trust.deadline == 106.0 and trust.next_renewal == 104.0
    assert not trust.is_due(103.9) and trust.is_due(104.0)


def test_a_keepalive_never_lasts_beyond_the_end_of_trust() -> None:
    trust = LeaseTrust(TTL, 100.0)
    assert trust.renewal_limit(102.0) == 1.0  # a sixth of the TTL
    assert trust.renewal_limit(103.6) == pytest.approx(0.4)
    of_three = LeaseTrust(6, 100.0, endpoints=3)
    assert of_three.renewal_limit(102.0) == pytest.approx(2 / 3)  # three tries fit before the end of trust
    assert LeaseTrust(6, 100.0, endpoints=9).renewal_limit(102.0) == 0.5  # four at the most
    assert trust.renewal_limit(105.0) == 1.0  # trust has ended: only the lease itself is left to save


def test_after_a_keepalive_that_was_not_answered_the_next_is_sent_soon() -> None:
    trust = LeaseTrust(TTL, 100.0)
    trust.not_renewed(102.5)
    assert trust.next_renewal == 102.75 and trust.deadline == 104.0
    short = LeaseTrust(2.0, 100.0)
    short.not_renewed(101.0)
    assert short.next_renewal == pytest.approx(101.0 + 2.0 / 24)


def test_a_change_of_trust_is_told_once() -> None:
    trust = LeaseTrust(TTL, 100.0)
    assert [trust.changes(now) for now in (103.0, 104.0, 105.0)] == [False, True, False]
    trust.renewed(TTL, sent_at=104.5, now=105.0)
    assert [trust.changes(now) for now in (105.0, 108.4, 108.5)] == [False, False, True]


@given(st.integers(0, 2**32))
def test_trust_never_outlasts_the_lease_in_etcd(seed: int) -> None:
    """etcd counts from the arrival of a keepalive, the client from its sending; answers are late or lost."""
    chance = random.Random(seed)
    now = sent_at = 0.0
    trust = LeaseTrust(TTL, sent_at)
    expires = now + TTL
    for _ in range(100):
        now += chance.choice([0.01, 0.25, 1.0])
        if now >= expires:
            break
        assert trust.remaining(now) <= expires - now - TTL / 3 + 1e-9
        if trust.is_due(now):
            sent_at, limit = now, trust.renewal_limit(now)
            now += chance.uniform(0, limit)
            if now < expires and chance.random() < 0.8:
                expires = now + TTL  # it arrives
                if chance.random() < 0.7:
                    trust.renewed(TTL, sent_at, now)
                    continue
            trust.not_renewed(now)
    assert trust.remaining(expires) <= 1e-9


class Client:
    """A lease client with prepared answers."""

    def __init__(self, *answers: int | EtcdError) -> None:
        self.answers = list(answers)
        self.endpoint = "first"
        self.endpoint_count = 2
        self.renewed: list[int] = []
        self.connected = 0

    def renew(self, lease_id: int, timeout: float) -> int:
        self.renewed.append(lease_id)
        answer = self.answers.pop(0)
        if isinstance(answer, EtcdError):
            self.endpoint = "second"
            raise answer
        return answer

    def connect_all(self) -> None:
        self.connected += 1


class Loop:
    """An event loop that calls at once."""

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        callback()


class Renewing:
    """A keepalive whose thread does not run; the test calls it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: int | EtcdError) -> None:
        self.now = 100.0
        self.told: list[str] = []
        monkeypatch.setattr(keepalive_module.clock, "now", lambda: self.now)
        self.client = Client(*answers)
        self.keepalive = Keepalive(
            cast(Any, self.client),
            Lease(1, 6),
            100.0,
            cast(asyncio.AbstractEventLoop, Loop()),
            lambda: self.told.append("changed"),
            lambda endpoint: self.told.append(f"failed at {endpoint}"),
            lambda name, error: self.told.append("broken"),
        )

    def renew(self, now: float) -> bool:
        self.now = now
        return self.keepalive._renew()


def test_a_lost_keepalive_names_the_endpoint_that_did_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    renewing = Renewing(monkeypatch, EtcdUnavailable("no answer"), 6)
    assert renewing.renew(102.0)
    assert renewing.told == ["failed at first"] and renewing.keepalive.remaining() == 2.0
    assert renewing.renew(102.25)
    assert renewing.told[1:] == ["changed"] and renewing.keepalive.remaining() == 4.0


def test_a_lost_keepalive_after_the_end_of_trust_tells_of_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    renewing = Renewing(monkeypatch, EtcdUnavailable("no answer"))
    assert renewing.renew(104.0)
    assert renewing.told == ["changed", "failed at first"] and renewing.keepalive.remaining() <= 0


@pytest.mark.parametrize("answer", [0, EtcdError(LEASE_NOT_FOUND)])
def test_a_lease_that_is_gone_ends_the_keepalive(monkeypatch: pytest.MonkeyPatch, answer: int | EtcdError) -> None:
    renewing = Renewing(monkeypatch, answer)
    assert not renewing.renew(102.0)
    assert renewing.keepalive.gone and renewing.keepalive.remaining() < 0 and renewing.told == ["changed"]


def test_trust_is_extended_only_when_the_longer_leases_are_renewed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    renewing = Renewing(monkeypatch, 6, EtcdUnavailable("no answer"), 6, 0)
    renewing.keepalive.renew_too(30, Lease(2, 30))
    assert renewing.renew(102.0)
    assert renewing.client.renewed == [1, 2] and renewing.keepalive.remaining() == 2.0
    assert renewing.renew(103.0)  # the delayed lease was revoked; the session goes on without it
    assert renewing.keepalive.remaining() == 4.0 and renewing.keepalive.delayed_lease(30) is None
