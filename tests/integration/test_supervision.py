"""Nothing dies in silence: each background task is ended by an exception that nobody expects, and its owner tells."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    EtcdError,
    LockLost,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.etcd.transports.protocol import WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually, queue_of

BUG = "a bug that nobody expects"


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError(BUG)


async def failing_call(*_: Any, **__: Any) -> Any:
    raise RuntimeError(BUG)


async def cancelled_call(*_: Any, **__: Any) -> Any:
    raise asyncio.CancelledError


def kill_the_hub(session: Any) -> None:
    """The stream breaks, and the next one cannot be opened."""
    core_of(session).transport.watch = failing_call
    core_of(session).hub._stream.close()


def cancel_the_hub(session: Any) -> None:
    """An accident, as when gRPC says of a call that it was cancelled."""
    core_of(session).transport.watch = cancelled_call
    core_of(session).hub._stream.close()


def kill_the_reader(session: Any) -> None:
    core_of(session).hub._dispatch = failing
    core_of(session).hub.subscribe(WatchRequest(b"/any"), lambda notice: None)


def kill_group_commit(session: Any) -> None:
    core_of(session).transport.txn = failing_call
    core_of(session).committer.submit(_harmless(session))


def kill_the_remover(session: Any) -> None:
    core_of(session).transport.delete = failing_call
    core_of(session).remover.remove(b"/any")


def kill_what_tries_a_removal_again(session: Any) -> None:
    core_of(session).transport.delete = _unavailable
    core_of(session).remover._again = failing
    core_of(session).remover.remove(b"/any")


def kill_the_gathering(session: Any) -> None:
    core_of(session).committer._batcher._take = failing
    core_of(session).committer.submit(_harmless(session))


def kill_settling(session: Any) -> None:
    core_of(session).transport.txn = _unavailable
    core_of(session).committer._move_fence = failing_call
    core_of(session).committer.submit(_harmless(session))


def kill_the_keepalive(session: Any) -> None:
    core_of(session)._keepalive._client.renew = failing


def kill_the_tick(session: Any) -> None:
    core_of(session).members.add(_Member())
    core_of(session).members.add(_Member())


async def _unavailable(*_: Any, **__: Any) -> Any:
    from codomyrmex.concurrency import EtcdUnavailable

    raise EtcdUnavailable("no answer", applied="unknown", retryable=True)


def _harmless(session: Session) -> Any:
    from codomyrmex.concurrency.etcd.commit import Request
    from codomyrmex.concurrency.etcd.transports.protocol import Put

    return Request((b"any",), (Put(b"/any", b""),), again=())


class _Member:
    """A member of the session that fails at everything it is told."""

    def holds(self) -> tuple[()]:
        return ()

    def waits(self) -> tuple[()]:
        return ()

    tick = untrusted = session_closing = session_lost = failing


DEATHS = [
    kill_the_hub,
    cancel_the_hub,
    kill_the_reader,
    kill_group_commit,
    kill_the_remover,
    kill_what_tries_a_removal_again,
    kill_the_gathering,
    kill_settling,
    kill_the_keepalive,
    kill_the_tick,
]


@pytest.mark.parametrize("kill", DEATHS, ids=lambda kill: kill.__name__)
async def test_whatever_dies_in_the_background_ends_the_session_with_the_reason(
    kill: Any, session: Session, other: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Holders are told and waiters get an error, at once and not when a time limit runs out."""
    blocked = DistributedLock("blocked", other)
    await blocked.acquire()
    waiting = asyncio.create_task(DistributedLock("blocked", session).acquire())
    await queue_of(other, "blocked", 2)

    held = asyncio.Event()

    async def holds() -> None:
        async with DistributedLock("held", session):
            held.set()
            await asyncio.sleep(60)

    holding = asyncio.create_task(holds())
    await asyncio.wait_for(held.wait(), 5)
    await eventually(lambda: core_of(session).hub._stream)  # type: ignore[attr-defined]
    kill(session)
    async with asyncio.timeout(4):
        await session.lost.wait()
        with pytest.raises(SessionLost):
            await waiting
        with pytest.raises(LockLost):
            await holding
        with pytest.raises(SessionLost):
            await DistributedLock("later", session).acquire()
    assert isinstance(session.lost.reason, SessionLost)
    cause = "cancelled by accident" if kill is cancel_the_hub else BUG
    assert cause in str(session.lost.reason) and cause in caplog.text


@pytest.mark.parametrize("how", ["subscribe", "follow"])
async def test_a_sink_that_raises_ends_its_own_watch_and_nothing_else(
    how: str, session: Session, other: Session
) -> None:
    told: list[Notice] = []
    healthy: list[Notice] = []

    def sink(notice: Notice) -> None:
        told.append(notice)
        if isinstance(notice, Changed):
            raise RuntimeError(BUG)

    follow = getattr(core_of(session).hub, how)
    request = WatchRequest(core_of(session).layout.queue("x"), core_of(session).layout.queue("y"))
    followers = follow(request, sink), follow(request, healthy.append)
    await eventually(lambda: any(isinstance(notice, Started) for notice in healthy))
    for number in range(2):
        async with DistributedLock("x", other):
            await eventually(lambda n=number: sum(isinstance(notice, Changed) for notice in healthy) > 2 * n)
    await eventually(lambda: sum(isinstance(notice, Changed) for notice in healthy) == 4)
    assert isinstance(told[-1], Refused) and isinstance(told[-1].error, EtcdError)
    assert BUG in str(told[-1].error)
    assert sum(isinstance(notice, Changed) for notice in told) == 1
    async with DistributedLock("x", session):  # the session goes on
        assert session.alive
    assert followers


async def test_a_member_that_fails_keeps_nobody_else_from_being_told(session: Session, other: Session) -> None:
    anyone: Any = core_of(session)
    for _ in range(3):
        anyone.members.add(_Member())
    grant = await DistributedLock("x", session).acquire()
    for _ in range(3):
        anyone.members.add(_Member())
    anyone.members.stop_ticks()
    anyone._end(SessionLost("the end"))
    assert grant.lost.is_set()
