"""The parts of a slice join one queue together: one reading, one wait, one decision."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from codomyrmex.concurrency.etcd.transports.protocol import Get, Put
from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.waitqueue import join
from codomyrmex.concurrency.waitqueue.rules import Granted, Never, Permits, Predecessor, View, WaitFor
from codomyrmex.concurrency.waitqueue.turn import Action


class Part:
    """An entry that is a part of a slice in ``queue``, as far as joining needs it."""

    def __init__(self, queue: bytes, number: int, size: int, weight: int) -> None:
        self.queue_ref: Any = SimpleNamespace(
            queue=queue, whole=Get(queue, queue + b"\xff"), newest=Get(queue, queue + b"\xff", 1), name="x"
        )
        self.key = b"%s%d" % (queue, number)
        self.value, self.lease = b"{}", 7
        self.rule = Permits(size, weight)
        self.session: Any = SimpleNamespace(home=SimpleNamespace(future=lambda: None), alive=True)
        self.by = None
        self.contended = False


def parts_of(*weights: int) -> list[Any]:
    """The parts of a slice with these weights, in a queue each."""
    queues = enumerate(weights)
    return [
        Part(b"q%d/" % queue, number, size, weight)
        for queue, weight in queues
        for number, size in enumerate(timing.parts(weight))
    ]


def view(*sizes: int, limit: int | None = 10) -> View:
    entries = [Predecessor(b"/f/v1/rate/x/000000000000000%d-0.%d" % pair, 1) for pair in enumerate(sizes)]
    return View(2, entries, len(entries), limit)


def test_a_part_is_granted_when_all_parts_fit() -> None:
    part = Permits(3, together=5)
    assert part(view(5)) == Granted() and part(view(6)) == WaitFor(b"")
    assert Permits(3)(view(6)) == Granted()
    assert part.key_suffix == b".3"


def test_parts_that_are_larger_than_the_limit_together_never_are_granted() -> None:
    found = Permits(6, together=11)(view())
    assert isinstance(found, Never) and "11 permits were asked for, but the limit is 10 now" in found.reason
    assert isinstance(Permits(1, together=1)(view(limit=None)), Never)


def test_each_queue_is_read_once_and_before_every_put() -> None:
    entries = parts_of(7, 3)
    operations = join._request(entries, [0] * len(entries)).then
    assert [type(one) for one in operations] == [Get, Get, *[Put] * 5]
    assert [one.key for one in operations[:2] if isinstance(one, Get)] == [b"q0/", b"q1/"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Action]], list[bytes]]:
    """Lets entries join with these actions; returns the keys that are waited for."""

    def prepared(actions: list[Action]) -> list[bytes]:
        found: list[bytes] = []

        async def joined(entries: Any) -> list[Action]:
            return actions

        async def wait(entry: Any, action: Action) -> None:
            found.append(entry.key)

        monkeypatch.setattr(join, "_join", joined)
        monkeypatch.setattr(join, "wait_until_granted", wait)
        monkeypatch.setattr(join, "warn_if_it_waits_for_itself", lambda *_: None)
        return found

    return prepared


async def test_each_queue_is_waited_for_once(waits: Callable[[list[Action]], list[bytes]]) -> None:
    entries = parts_of(7, 3)
    found = waits([Action.WATCH] * 5)
    assert await join.join_and_wait(entries, only_if_free=False)
    assert found == [b"q0/0", b"q1/0"]


async def test_a_queue_that_grants_is_not_waited_for(waits: Callable[[list[Action]], list[bytes]]) -> None:
    entries = parts_of(7, 3)
    found = waits([*[Action.GRANT] * 3, *[Action.WATCH] * 2])
    assert await join.join_and_wait(entries, only_if_free=False)
    assert found == [b"q1/0"]
