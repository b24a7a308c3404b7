"""A fleet goes on among garbage: it lies under every prefix before and during the life of all that is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import signal
import urllib.request
from contextlib import aclosing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    DeadLetterQueue,
    LimitMismatch,
    LockManager,
    Semaphore,
    Session,
    skipped_keys,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get, Put
from codomyrmex.concurrency.health import cluster_status
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.pool import cluster
from codomyrmex.concurrency.prometheus import Metrics
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from tests import garbage
from tests.helpers import eventually
from tests.integration.command_line import Cli, ended, line

_TOGETHER = 50  # puts in one transaction


async def strew(session: Session, lease: int) -> None:
    puts = list(garbage.under(core_of(session).layout.root, lease))
    for start in range(0, len(puts), _TOGETHER):
        await core_of(session).transport.txn((), puts[start : start + _TOGETHER])


async def sweep(session: Session, *prefixes: bytes) -> None:
    """Take the garbage away again, as those who wrote it may."""
    root = core_of(session).layout.root
    for prefix in prefixes:
        await core_of(session).transport.txn((), (Delete(root + prefix, prefix_end(root + prefix)),))


def strict(text: str) -> Any:
    """JSON that every reader accepts."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("form", ["wide", "json"])
async def test_every_view_shows_what_is_there(cli: Cli, session: Session, other: Session, form: str) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    await strew(session, other.id)
    entry_id = await dlq.add(operation="send", args={}, error="e")
    async with (
        LockManager(session).acquire("x"),
        Semaphore("s", max_concurrent=2, session=session),
        AsyncWorkerPool(name="crew", session=session, report=0.1) as pool,
    ):
        await pool.map(_same, range(3))
        await eventually(lambda: _three(pool))
        commands = (
            *(("locks",), ("locks", "show", "x"), ("locks", "--sort", "age", "--held-longer-than", "0s"), ("pools",)),
            *(("semaphores",), ("semaphores", "s"), ("status",), ("dlq", "stats"), ("dlq", "list", "-q", "mail")),
            *(("dlq", "show", entry_id, "-q", "mail"), ("locks", "show", "z-40")),
        )
        for command in commands:
            result = await cli(*command, "-o", form)
            assert result.code == 0 and "Traceback" not in result.err, (command, result.err[-2000:])
            if form == "json":
                assert strict(result.out)
            assert "skipping" in result.err or command[1:2] == ("show",) or command[0] == "status"
            assert all(said.count(b"skipping") <= 1 for said in result.err.encode().split(b"\n"))


async def test_a_fleet_goes_on_among_garbage(session: Session, other: Session, cli: Cli) -> None:
    handled: list[str] = []
    told: list[tuple[str, str]] = []
    dlq = DeadLetterQueue("mail", session=session)

    @dlq.handler("send")
    async def handle(entry: Any, attempt: Any) -> None:
        handled.append(entry.args["n"])

    async def follow() -> None:
        async with aclosing(LockManager(other).watch()) as events:
            async for event in events:
                if event.name in ("x", "later"):
                    told.append((event.name, event.kind))

    await strew(session, other.id)
    following = asyncio.create_task(follow())
    manager, sem = LockManager(session), Semaphore("s", max_concurrent=2, session=session)
    async with (
        Metrics(CollectorRegistry(), dead_letters=[dlq]) as metrics,
        cli.started("locks", "--watch", "-o", "jsonl", "--prefix", "later") as watching,
        AsyncWorkerPool(name="crew", session=session, report=0.1) as pool,
        dlq.worker(),
        manager.acquire("x") as grant,
        sem.hold(2),
    ):
        successor = asyncio.create_task(Semaphore("s", max_concurrent=2, session=other).acquire(timeout=20))
        await dlq.add(operation="send", args={"n": "before"}, error="e")
        await eventually(lambda: handled == ["before"])
        await sweep(session, b"dead/mail/dedup/", b"pool/", b"baton/", b"audit/", b"lock/y", b"lock/z", b"semaphore/u")
        await strew(session, other.id)
        await dlq.add(operation="send", args={"n": "after"}, error="e", dedup_key="k")
        await eventually(lambda: handled == ["before", "after"])
        await pool.map(_same, range(3))
        await eventually(lambda: _three(pool))
        assert (await sem.available(), (await sem.info()).limit) == (0, 2)
        assert (await manager.info("x")).holders[0].token == grant.token  # type: ignore[union-attr]
        assert any(info.name == "x" for info in await manager.locks())
        port = metrics.serve(port=0)
        scraped = await asyncio.to_thread(_scrape, port)
        assert scraped[("mail", "resolved")] == 2
        assert not successor.done()
        async with manager.acquire("later"):
            seen = [json.loads(await line(watching))["kind"] for _ in range(2)]
            assert seen == ["enqueued", "granted"]
        watching.send_signal(signal.SIGINT)
        assert await ended(watching) == 0
    permit = await successor
    await permit.release()
    await eventually(lambda: ("x", "released") in told and ("later", "released") in told)
    assert not following.done()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert core_of(session).is_open and core_of(other).is_open


async def _same(number: int) -> int:
    return number


async def _three(pool: AsyncWorkerPool) -> bool:
    seen = await pool.cluster_stats()
    return any(one.instance == pool.stats().instance and one.completed == 3 for one in seen.instances)


def _scrape(port: int) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [
            sample for family in families if family.name == "codomyrmex_dead_letters" for sample in family.samples
        ]
        return {(sample.labels["queue"], sample.labels["state"]): sample.value for sample in samples}


async def test_each_key_that_is_skipped_is_told_of_once(
    session: Session, other: Session, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skipped_keys, "_told", set())
    root = core_of(session).layout.root
    absurd = root + b"semaphore/s/%016x-0." % other.id + b"9" * 5000
    skipped = {
        absurd: other.id,
        root + b"semaphore/s/limit-0": 0,
        root + b"pool/crew/1": 0,
        root + b"dead/mail/entry/1": 0,
    }
    await core_of(session).transport.txn((), [Put(key, b"[", lease) for key, lease in skipped.items()])
    sem = Semaphore("s", max_concurrent=1, session=session)
    with caplog.at_level(logging.WARNING, "codomyrmex.concurrency"):
        for _ in range(2):
            async with sem:
                assert await inspect.semaphores(core_of(session)) == [await sem.info()]
            assert await cluster.pools(core_of(session)) == []
            assert await DeadLetterQueue("mail", session=session).list_entries() == []
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len(skipped) and all(len(text) < 500 for text in warnings)


async def test_a_semaphore_is_opened_and_resized_among_limits_that_are_none(session: Session, other: Session) -> None:
    root = core_of(session).layout.root
    await core_of(session).transport.txn(
        (), [Put(root + b"semaphore/s/limit-" + number, b"") for number in garbage.NUMBERS]
    )
    sem = Semaphore("s", max_concurrent=2, session=session)
    await sem.resize(2)
    assert (await sem.info()).limit == 2
    with pytest.raises(LimitMismatch):
        await Semaphore("s", max_concurrent=3, session=other).info()
    await sem.resize(4)
    assert (await Semaphore("s", max_concurrent=4, session=other).info()).limit == 4
    await core_of(session).transport.txn((), [Put(root + b"semaphore/s/limit-1", b"")])
    assert (await sem.info()).limit == 1  # of two the lower is in force
    assert await sem.try_acquire(2) is None
    await sem.resize(3)
    found = await core_of(session).transport.get(Get(root + b"semaphore/s/limit-1", root + b"semaphore/s/limit-:"))
    assert (await sem.info()).limit == 3 and b"limit-4" not in b"".join(kv.key for kv in found.kvs)


async def test_who_opens_a_semaphore_first_among_garbage_is_one(session: Session, other: Session) -> None:
    await core_of(session).transport.txn((), [Put(core_of(session).layout.root + b"semaphore/s/limit-x", b"")])
    opening = [Semaphore("s", max_concurrent=n, session=on).acquire() for n, on in ((2, session), (3, other))]
    results = await asyncio.gather(*opening, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["LimitMismatch", "Permit"]


async def test_a_claim_of_more_than_there_can_be_blocks_nobody(session: Session, other: Session) -> None:
    key = core_of(session).layout.root + b"semaphore/s/%016x-f." % other.id + b"9" * 5000
    await core_of(session).transport.txn((), (Put(key, b"", other.id),))
    sem = Semaphore("s", max_concurrent=2, session=session)
    async with sem.hold(2):
        successor = asyncio.create_task(Semaphore("s", max_concurrent=2, session=other).acquire())
        await eventually(lambda: _waits(sem))
        await core_of(session).transport.txn((), (Delete(key),))
        await core_of(session).transport.txn((), (Put(key, b"", other.id),))
        assert await sem.try_acquire() is None and not successor.done()
    await (await asyncio.wait_for(successor, 10)).release()


async def _waits(sem: Semaphore) -> bool:
    info = await sem.info()
    return len(info.waiters) == 1 and sum(owner.permits for owner in info.holders) == 2


async def test_an_entry_whose_key_is_no_text_can_be_released_by_force(session: Session, other: Session) -> None:
    key = core_of(session).layout.queue("x") + b"\xff"
    await core_of(session).transport.txn((), (Put(key, b"", other.id),))
    manager = LockManager(session)
    holder = await manager.force_release("x", reason="\ud800 is in the way")
    assert holder.session == f"{other.id:016x}" and await manager.locks() == []
    async with manager.acquire("x", timeout=5):
        assert (await manager.info("x")).last_forced_release.token == holder.token  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [b"junk", b"\xff\xfe", b"", b"0" * 24])
async def test_a_dedup_key_that_names_nothing_keeps_no_failure_out(session: Session, value: bytes) -> None:
    known = core_of(session).layout.root + b"dead/mail/dedup/" + hashlib.sha256(b"k").hexdigest().encode()
    await core_of(session).transport.txn((), (Put(known, value),))
    dlq = DeadLetterQueue("mail", session=session)
    first = await dlq.add(operation="send", args={}, error="e", dedup_key="k")
    again = await dlq.add(operation="send", args={}, error="e", dedup_key="k")
    assert first == again and [entry.id for entry in await dlq.list_entries()] == [first]


async def test_status_counts_what_is_skipped(session: Session, other: Session) -> None:
    root, queue = core_of(session).layout.root, core_of(session).layout.root + b"semaphore/s/"
    junk = [Put(queue + b"limit-" + b"9" * 5000, b""), Put(root + b"lock/x/1", b""), Put(root + b"lock/%zz/1", b"")]
    absurd = Put(queue + b"%016x-0.0" % other.id, b"", other.id)
    await core_of(session).transport.txn((), (*junk, absurd))
    async with Semaphore("s", max_concurrent=1, session=session), LockManager(session).acquire("x"):
        status = await cluster_status(session.settings)
    assert status.locks == 1
    assert [text for text in status.warnings if "skipped" in text] == [
        "2 keys among the lock entries are not entries; they are skipped",
        "2 keys among the semaphore entries are not entries; they are skipped",
    ]
