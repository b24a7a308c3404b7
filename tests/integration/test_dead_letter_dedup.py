"""A dedup key names the one entry that stands for a failure; what ends an entry leaves the keys of others alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from codomyrmex.concurrency import Attempt, DeadLetter, DeadLetterQueue, Discard, RetryPolicy, Session
from codomyrmex.concurrency.dead_letters import record, steps
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get, Put
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually

NAME = "dedup"


def dead_letters(session: Session, **options: Any) -> DeadLetterQueue:
    return DeadLetterQueue(NAME, session=session, retry=RetryPolicy(initial=0.01, jitter=0), **options)


async def add(dlq: DeadLetterQueue, key: str = "order-7") -> str:
    return await dlq.add(operation="x", args={}, error="bad", dedup_key=key)


def dedup_key(session: Session, key: str = "order-7") -> bytes:
    return Store(core_of(session), NAME, 60).prefix + b"dedup/" + hashlib.sha256(key.encode()).hexdigest().encode()


async def named(session: Session, key: str = "order-7") -> bytes | None:
    """The value of a dedup key in etcd."""
    found = await core_of(session).transport.get(Get(dedup_key(session, key)))
    return found.kvs[0].value if found.kvs else None


async def resolved_and_failed_again(dlq: DeadLetterQueue, session: Session) -> tuple[str, str]:
    """An old entry that waits once more beside a new one, which the dedup key names."""
    old = await add(dlq)
    await dlq.discard(old, reason="mended")
    new = await add(dlq)
    assert old != new and await named(session) == new.encode()
    return old, new


async def _discarded(dlq: DeadLetterQueue, old: str) -> None:
    await dlq.replay(old)
    await dlq.discard(old, reason="not needed")


async def _discarded_twice(dlq: DeadLetterQueue, old: str) -> None:
    await dlq.discard(old, reason="again")


async def _purged(dlq: DeadLetterQueue, old: str) -> None:
    assert await dlq.purge() == 1


async def _purged_while_waiting(dlq: DeadLetterQueue, old: str) -> None:
    await dlq.replay(old)
    store = await dlq._opened()
    stored = await store.get(old)
    assert stored and await store.remove(stored)


async def _evicted(dlq: DeadLetterQueue, old: str) -> None:
    full = DeadLetterQueue(NAME, session=dlq._session, max_entries=2)
    await add(full, "another failure")
    assert await dlq.get(old) is None


async def _handled(dlq: DeadLetterQueue, old: str) -> None:
    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        if entry.id != old:
            await asyncio.sleep(60)

    await dlq.replay(old)

    async def resolved() -> bool:
        entry = await dlq.get(old)
        return entry is not None and entry.state == "resolved"

    with pytest.raises(ZeroDivisionError):
        async with dlq.worker():
            await eventually(resolved)
            raise ZeroDivisionError


@pytest.mark.parametrize(
    "end",
    [_discarded, _discarded_twice, _purged, _purged_while_waiting, _evicted, _handled],
    ids=lambda end: end.__name__,
)
async def test_the_end_of_an_old_entry_leaves_the_key_of_the_new_one(
    session: Session, end: Callable[[DeadLetterQueue, str], Awaitable[None]]
) -> None:
    dlq = dead_letters(session)
    old, new = await resolved_and_failed_again(dlq, session)
    await end(dlq, old)
    entry = await dlq.get(old)
    assert entry is None or entry.state == "resolved"
    assert await named(session) == new.encode()
    assert await add(dlq) == new


@pytest.mark.parametrize("how", ["discard", "purge", "worker"])
async def test_the_end_of_the_entry_that_a_key_names_frees_the_key(session: Session, how: str) -> None:
    dlq = dead_letters(session)
    entry_id = await add(dlq)
    if how == "discard":
        await dlq.discard(entry_id, reason="x")
    elif how == "purge":
        assert await dlq.purge(state="waiting") == 1
    else:

        @dlq.handler("x")
        async def handle(entry: DeadLetter, attempt: Attempt) -> None:
            raise Discard("obsolete")

        async with dlq.worker() as worker:
            await asyncio.wait_for(worker.settled(), 5)
    assert await named(session) is None
    assert await add(dlq) != entry_id


async def test_a_replayed_entry_takes_its_key_back_if_that_is_free(session: Session) -> None:
    dlq = dead_letters(session)
    entry_id = await add(dlq)
    await dlq.discard(entry_id, reason="x")
    await dlq.replay(entry_id)
    assert await named(session) == entry_id.encode() and await add(dlq) == entry_id and await dlq.count() == 1
    await dlq.discard(entry_id, reason="x")
    assert await named(session) is None


async def test_all_that_are_replayed_take_their_keys_back(session: Session) -> None:
    dlq = dead_letters(session)
    ids = [await add(dlq, f"order-{n}") for n in range(3)]
    for entry_id in ids:
        await dlq.discard(entry_id, reason="x")
    assert await dlq.replay_all(state="resolved") == 3
    assert [await add(dlq, f"order-{n}") for n in range(3)] == ids


async def test_a_replayed_entry_stays_without_its_key_if_another_has_it(session: Session) -> None:
    dlq = dead_letters(session)
    old, new = await resolved_and_failed_again(dlq, session)
    assert (await dlq.replay(old)).state == "waiting"
    assert await named(session) == new.encode() and await add(dlq) == new


async def _by_hand(session: Session, value: bytes) -> None:
    await core_of(session).transport.txn((), (Put(dedup_key(session), value),))


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"no-such-entry", b"a/../b", b"x" * 5_000])
async def test_a_key_that_names_nothing_is_taken_over(session: Session, value: bytes) -> None:
    dlq = dead_letters(session)
    await _by_hand(session, value)
    entry_id = await add(dlq)
    entry = await dlq.get(entry_id)
    assert entry and entry.state == "waiting" and await named(session) == entry_id.encode()
    assert await add(dlq) == entry_id and await dlq.count() == 1


@pytest.mark.parametrize("what", ["resolved", "of another failure", "deleted by hand", "unreadable"])
async def test_a_key_whose_entry_does_not_stand_for_the_failure_is_taken_over(session: Session, what: str) -> None:
    dlq = dead_letters(session)
    first = await add(dlq, "another failure" if what == "of another failure" else "order-7")
    key = Store(core_of(session), NAME, 60).key(first)
    if what == "resolved":
        await dlq.discard(first, reason="x")
    elif what == "deleted by hand":
        await core_of(session).transport.txn((), (Delete(key),))
    elif what == "unreadable":
        await core_of(session).transport.txn((), (Put(key, b"\xff"),))
    await _by_hand(session, first.encode())
    second = await add(dlq)
    assert second != first and await dlq.get(second) is not None
    assert await named(session) == second.encode() and await add(dlq) == second


async def test_of_many_who_find_a_dangling_key_one_stores(session: Session, other: Session) -> None:
    here, there = dead_letters(session), dead_letters(other)
    await _by_hand(session, b"no-such-entry")
    ids = await asyncio.gather(*(add(dlq) for _ in range(10) for dlq in (here, there)))
    assert len(set(ids)) == 1 and await here.count() == 1


async def test_a_full_queue_still_knows_a_failure_that_it_holds(session: Session) -> None:
    dlq = dead_letters(session, max_entries=2)
    first = await add(dlq)
    resolved = await add(dlq, "another failure")
    await dlq.discard(resolved, reason="x")
    assert await add(dlq) == first and await dlq.get(resolved) is not None  # nothing had to make room for it


async def test_an_entry_that_is_there_is_not_written_again(session: Session) -> None:
    store = Store(core_of(session), NAME, 60)
    for dedup in (None, "order-7"):
        entry = record.new("x", {}, "bad", None, str, dedup)
        assert await store.add(entry, record.encode(entry)) == entry.id
        stored = await store.get(entry.id)
        assert stored and await store.change(stored, steps.dismissed(stored.entry, "done", record.now()))
        assert await store.add(entry, record.encode(entry)) == entry.id
        now = await store.get(entry.id)
        assert now and now.entry.state == "resolved" and now.entry.reason == "done"


async def test_a_full_queue_does_not_evict_an_entry_and_then_store_it_anew(session: Session) -> None:
    dlq = dead_letters(session, max_entries=1)
    entry = record.new("x", {}, "bad", None, str)
    await dlq._add_spilled(entry)
    await dlq.discard(entry.id, reason="done")
    await dlq._add_spilled(entry)
    found = await dlq.get(entry.id)
    assert found and found.state == "resolved"


def _once_it_was_read(session: Session, name: bytes, then: Callable[[], None]) -> None:
    transport: Any = core_of(session).transport
    read = transport.get

    async def get(request: Get) -> Any:
        found = await read(request)
        if request.key.endswith(name):
            then()
        return found

    transport.get = get


@pytest.mark.parametrize("what", ["add", "discard", "discard the old", "replay", "take over"])
async def test_a_lost_answer_changes_nothing(etcd: EmbeddedEtcd, namespace: str, session: Session, what: str) -> None:
    host, _, port = etcd.endpoint.removeprefix("http://").partition(":")
    seen = dead_letters(session)
    async with TcpProxy(host, int(port)) as proxy, Session(endpoints=proxy.endpoint, namespace=namespace) as far:
        dlq = dead_letters(far)
        expected: bytes | None
        if what in ("add", "take over"):
            if what == "take over":
                await _by_hand(session, b"no-such-entry")
                _once_it_was_read(far, b"no-such-entry", lambda: proxy.drop_next_answer(dedup_key(far)))
            else:
                proxy.drop_next_answer(dedup_key(far))
            entry_id = await add(dlq)
            expected, state = entry_id.encode(), "waiting"
        elif what == "discard the old":
            entry_id, new = await resolved_and_failed_again(dlq, session)
            await dlq.replay(entry_id)
            proxy.drop_next_answer(dedup_key(far))
            await dlq.discard(entry_id, reason="x")
            expected, state = new.encode(), "resolved"
        else:
            entry_id = await add(dlq)
            if what == "replay":
                await dlq.discard(entry_id, reason="x")
            proxy.drop_next_answer(dedup_key(far))
            changed = await (dlq.replay(entry_id) if what == "replay" else dlq.discard(entry_id, reason="x"))
            expected, state = (entry_id.encode(), "waiting") if what == "replay" else (None, "resolved")
            assert changed.state == state
        assert proxy.dropped == 1
    entry = await seen.get(entry_id)
    assert entry and entry.state == state and await named(session) == expected
