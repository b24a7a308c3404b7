"""One name however it is spelled: a Mac gives "é" in two characters, Linux in one; and what earlier releases left."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from contextlib import aclosing

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Attempt,
    DeadLetter,
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    LockEvent,
    LockManager,
    Semaphore,
    Session,
    sync,
)
from codomyrmex.concurrency.dead_letters import reader, record, steps
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.transports.protocol import Get, Put
from codomyrmex.concurrency.keys import LOCK, SEMAPHORE, Kind, prefix_end
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from tests.helpers import eventually
from tests.integration.command_line import Cli

LINUX = "file_edit:r\u00e9sum\u00e9.md"
MAC = unicodedata.normalize("NFD", LINUX)
PREFIX = "file_edit:re\u0301"  # as a Mac gives it


async def leave_old_entry(session: Session, kind: Kind = LOCK, claim: bytes = b"") -> None:
    """An entry under the decomposed name, as an earlier release put it."""
    key = core_of(session).layout.entry(core_of(session).layout.queue(MAC, kind), session.id, 7, claim)
    value = json.dumps({"host": "old", "pid": 1, "since": 1e9}).encode()
    await core_of(session).transport.txn((), (Put(key, value, session.id),))


async def test_a_mac_and_a_linux_agent_exclude_each_other(session: Session, other: Session) -> None:
    async with DistributedLock(MAC, session) as grant:
        assert grant.name == LINUX
        assert await DistributedLock(LINUX, other).try_acquire() is None
        assert [info.name for info in await LockManager(other).locks(PREFIX)] == [LINUX]
        shown = await LockManager(other).info(MAC)
        assert shown and shown.name == LINUX and shown.holders[0].token == grant.token


async def test_a_manager_takes_all_spellings_for_one(session: Session) -> None:
    manager = LockManager(session)
    assert manager.lock(MAC) is manager.lock(LINUX)
    async with manager.acquire_all([MAC, LINUX, "other"], on_loss="notify") as grants:
        assert [grant.name for grant in grants] == [LINUX, "other"]
        await manager.force_release(MAC, reason="a test", token=grants[0].token)
        await grants[0].lost


async def test_permits_are_of_one_semaphore(session: Session, other: Session) -> None:
    async with Semaphore(MAC, max_concurrent=1, session=session):
        assert await Semaphore(LINUX, max_concurrent=1, session=other).try_acquire() is None
        assert [info.name for info in await inspect.semaphores(core_of(other), PREFIX)] == [LINUX]


async def test_a_watch_by_a_decomposed_prefix_sees_the_name(session: Session, other: Session) -> None:
    async with DistributedLock(LINUX, other), aclosing(inspect.watch(core_of(session), PREFIX)) as events:
        first: LockEvent = await asyncio.wait_for(anext(events), 5)
        assert (first.kind, first.name) == ("enqueued", LINUX)


async def test_pools_of_both_spellings_are_summed(session: Session, other: Session) -> None:
    async with (
        AsyncWorkerPool(2, name=MAC, session=session, report=0.1) as mac,
        AsyncWorkerPool(3, name=LINUX, session=other, report=0.1) as linux,
    ):
        await mac.submit(len, "a")
        await linux.submit(len, "a")
        assert mac.name == linux.name == LINUX

        async def both() -> bool:
            return (await mac.cluster_stats()).max_workers == 5

        await eventually(both)


async def test_the_blocking_twin_spells_as_the_others_do(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    def blocking() -> None:
        with sync.Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as theirs:
            manager = sync.LockManager(theirs)
            assert manager.lock(MAC) is manager.lock(LINUX)
            assert manager.lock(MAC).try_acquire() is None

    async with DistributedLock(LINUX, session):
        await asyncio.to_thread(blocking)


async def test_the_command_line_takes_any_spelling(cli: Cli, session: Session) -> None:
    async with DistributedLock(LINUX, session), Semaphore(LINUX, max_concurrent=1, session=session):
        for command in ("locks", "semaphores"):
            assert LINUX in (await cli(command, "--prefix", PREFIX)).out
            assert LINUX in (await cli(command, "show", MAC)).out
        assert (await cli("run", "--lock", MAC, "--timeout", "0", "--", "true")).code == 75
    ran = await cli("run", "--lock", MAC, "--lock", LINUX, "--", "sh", "-c", "echo $CODOMYRMEX_LOCK_NAME")
    assert ran.out == f"{LINUX}\n"


# What an earlier release left under another form of a name


async def test_a_holder_under_another_form_is_shown_apart_and_can_be_released(cli: Cli, session: Session) -> None:
    await leave_old_entry(session)
    manager = LockManager(session)
    async with manager.acquire(LINUX):  # they are two names in etcd
        assert [info.name for info in await manager.locks(PREFIX)] == [MAC, LINUX]
        shown = (await cli("locks")).out
        assert LINUX in shown and "re\\u0301sume\\u0301.md" in shown and MAC not in shown
        released = await cli("locks", "release", MAC, "--reason", "a test", "-y")
        assert released.code == 0 and "old:1" in released.out
        assert [info.name for info in await manager.locks(PREFIX)] == [LINUX]


async def test_one_alone_under_another_form_is_found_by_any_spelling(session: Session) -> None:
    await leave_old_entry(session)
    await leave_old_entry(session, SEMAPHORE, b".1")
    manager = LockManager(session)
    shown = await manager.info(LINUX)
    assert shown and shown.name == MAC and shown.holders[0].host == "old"
    semaphore = await inspect.semaphore(core_of(session), LINUX)
    assert semaphore.name == MAC and [owner.host for owner in semaphore.waiters] == ["old"]
    async with aclosing(inspect.watch(core_of(session), LINUX)) as events:
        assert (await asyncio.wait_for(anext(events), 5)).name == MAC
    assert (await manager.force_release(LINUX, reason="a test")).host == "old"
    assert await manager.info(LINUX) is None


async def failed(queue: Store, number: int, dedup_key: str | None = None) -> DeadLetter:
    entry = record.new("send", {"number": number}, "away", None, str, dedup_key)
    await queue.add(entry, record.encode(entry))
    return entry


async def test_dead_letters_under_another_form_are_drained(session: Session) -> None:
    former = Store(core_of(session), MAC, 60)
    first, second = await failed(former, 1, "mail-1"), await failed(former, 2)
    dlq = DeadLetterQueue(LINUX, session=session)
    handled: list[int] = []

    @dlq.handler("send")
    async def send(entry: DeadLetter, attempt: Attempt) -> None:
        handled.append(entry.args["number"])

    assert await reader.queues(core_of(session)) == [LINUX]
    assert {entry.id for entry in await dlq.list_entries()} == {first.id, second.id}
    assert await dlq.add(operation="send", args={}, error="away", dedup_key="mail-1") == first.id
    left = await core_of(session).transport.get(Get(former.prefix, prefix_end(former.prefix)))
    assert left.total == 0, "nothing may stay under the other form"
    async with dlq.worker() as worker:
        await worker.settled()
    assert sorted(handled) == [1, 2]
    assert {entry.state for entry in await dlq.list_entries()} == {"resolved"}


async def test_a_dead_letter_that_is_being_run_under_another_form_is_left_until_it_is_not(
    session: Session, other: Session
) -> None:
    former = Store(core_of(other), MAC, 60)
    entry = await failed(former, 1)
    stored = await former.get(entry.id)
    assert stored
    claim = await former.claim(stored)
    assert claim
    assert await DeadLetterQueue(LINUX, session=session).count() == 0
    assert await former.finish(claim, steps.interrupted(claim.entry, record.now()))
    assert [one.id for one in await DeadLetterQueue(MAC, session=session).list_entries()] == [entry.id]


async def test_the_command_line_shows_queues_under_another_form(cli: Cli, session: Session) -> None:
    await failed(Store(core_of(session), MAC, 60), 1)
    stats = await cli("dlq", "stats", "-o", "json")
    assert [(one["queue"], one["waiting"]) for one in json.loads(stats.out)] == [(LINUX, 1)]
