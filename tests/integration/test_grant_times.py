"""Waited and held are told apart: in an inspection, in a watch, and at the end of a wait."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Owner, Semaphore, Session
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.keys import SEMAPHORE
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.entry import Entry
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from tests.helpers import entries, eventually, queue_of, revoke
from tests.integration.command_line import Cli


async def holder(session: Session, name: str) -> Owner | None:
    info = await LockManager(session).info(name)
    return info.holders[0] if info else None


async def put_entry(session: Session, name: str, number: int, **told: object) -> None:
    """An entry written by hand: what its owner tells is as the test wants it."""
    value = {"host": f"host{number}", "pid": number, "since": time.time() - 3600, **told}
    key = core_of(session).layout.queue(name) + b"%016x-%x" % (session.id, number)
    await core_of(session).transport.txn((), (Put(key, json.dumps(value).encode(), session.id),))


@pytest.mark.parametrize("lock_delay", [0.0, 1.0], ids=["", "lock_delay"])
async def test_what_was_waited_for_is_held_from_its_grant(session: Session, other: Session, lock_delay: float) -> None:
    first = DistributedLock("x", session)
    await first.acquire()
    waiting = asyncio.create_task(DistributedLock("x", other, lock_delay=lock_delay).acquire())
    (_, theirs) = await queue_of(session, "x", 2)
    await asyncio.sleep(0.3)
    released = datetime.now(UTC)
    await first.release()
    grant = await waiting

    async def told() -> Owner | None:
        owner = await holder(session, "x")
        return owner if owner and owner.granted_at else None

    owner = await eventually(told)
    assert owner.granted_at >= released - timedelta(milliseconds=50)  # a value has milliseconds
    assert owner.since < released and owner.waited == pytest.approx(grant.waited, abs=0.002)
    (kept,) = await entries(session, "x")
    assert (kept.key, kept.create_revision) == (theirs.key, grant.token)
    assert (kept.lease == other.id) == (not lock_delay)


async def test_permits_are_told_of_as_locks_are(session: Session) -> None:
    async def told() -> bool:
        holders = (await inspect.semaphore(core_of(session), "s")).holders
        return bool(holders) and holders[0].granted_at is not None

    async with Semaphore("s", max_concurrent=1, session=session):
        await eventually(told)


async def test_what_is_told_too_late_brings_no_lock_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = DistributedLock("x", session)
    asked: list[Entry] = []

    def holds(entry: Entry) -> tuple[str, float]:
        asked.append(entry)
        return "lock", 0.0

    monkeypatch.setattr(Entry, "holds", holds)  # so that it goes to etcd, as if the release had overtaken it
    async with core_of(session).member(LocalQueues).recording:
        await lock.acquire()
        await eventually(lambda: core_of(session).member(LocalQueues).recording._waiters)
        await lock.release()
    await eventually(lambda: asked and not core_of(session).member(LocalQueues).recording.locked())
    assert await entries(session, "x") == []


async def test_an_etcd_that_is_away_is_told_when_it_is_back(namespace: str) -> None:
    async with EmbeddedEtcd() as own:
        settings = {"endpoints": own.endpoint, "namespace": namespace, "session_ttl": 60, "request_timeout": 1}
        async with Session(**settings) as session, DistributedLock("x", session):  # type: ignore[arg-type]
            await asyncio.to_thread(own.kill)
            await asyncio.sleep(1.5)
            await own.start()

            async def told() -> bool:
                owner = await holder(session, "x")
                return owner is not None and owner.granted_at is not None

            await eventually(told, 15)


async def test_a_follower_times_what_it_sees_of_clients_that_tell_nothing(session: Session) -> None:
    events = []

    async def follow() -> None:
        async for event in LockManager(session).watch("x"):
            events.append(event)

    following = asyncio.create_task(follow())
    await put_entry(session, "x0", 1)
    await eventually(lambda: len(events) == 2)
    events.clear()  # from here on it sees what happens
    await put_entry(session, "x1", 1)
    await eventually(lambda: len(events) == 2)
    await put_entry(session, "x1", 2)
    await eventually(lambda: len(events) == 3)
    await core_of(session).remover.remove((await entries(session, "x1"))[0].key)
    await eventually(lambda: len(events) == 5)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [event.kind for event in events] == ["enqueued", "granted", "enqueued", "released", "granted"]
    released, granted = events[3:]
    assert abs(released.owner.granted_at - events[1].at) < timedelta(milliseconds=50)
    waited = (granted.at - events[2].at).total_seconds()
    assert granted.owner.waited == pytest.approx(waited, abs=0.05) and granted.owner.granted_at <= granted.at


async def test_of_what_was_there_before_a_follower_knows_what_was_told(session: Session) -> None:
    await put_entry(session, "x", 1)
    watching = LockManager(session).watch("x")
    joined, granted = await anext(watching), await anext(watching)
    assert granted.kind == "granted" and granted.owner.granted_at is None
    await put_entry(session, "x", 1, waited=60)
    await core_of(session).remover.remove(joined.owner.key.encode())
    released = await anext(watching)
    assert released.kind == "released" and released.owner.waited == 60
    await watching.aclose()


async def test_a_lock_handed_over_just_now_is_not_shown_as_held_for_the_time_of_its_wait(
    cli: Cli, session: Session, other: Session
) -> None:
    first = DistributedLock("x", session)
    await first.acquire()
    waiting = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(session, "x", 2)
    await asyncio.sleep(3.1)
    released = time.monotonic()
    await first.release()
    grant = await waiting
    await asyncio.sleep(1.1)  # the holder records its grant up to a second later
    shown = (await cli("locks")).out.split()
    held, waited = shown[shown.index(str(grant.token)) + 1 :][:2]
    assert 1 <= int(held.removesuffix("s")) <= time.monotonic() - released and waited == "3s"


async def test_locks_are_chosen_by_how_long_they_are_held(cli: Cli, session: Session) -> None:
    await put_entry(session, "just-granted", 1, waited=3590)
    await put_entry(session, "long-held", 2, waited=1800)
    await put_entry(session, "who-knows", 3)
    held, by_time, shown = await asyncio.gather(
        cli("locks", "--held-longer-than", "20m", "-o", "name"),
        cli("locks", "--sort", "held", "-o", "name"),
        cli("locks"),
    )
    assert held.out == "long-held\n" and "1 left out" in held.err
    assert by_time.out.split() == ["long-held", "just-granted", "who-knows"]
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    assert "59m50s" in lines["just-granted"] and "30m00s" in lines["long-held"]
    assert not any("1h00m" in line for line in lines.values())
    assert lines["who-knows"].count("?") == 2


async def test_run_tells_for_how_long_it_is_held_and_not_waited_for(cli: Cli, session: Session) -> None:
    await put_entry(session, "known", 1, waited=3590, metadata={"agent": "parser"})
    await put_entry(session, "unknown", 2)
    known, unknown = await asyncio.gather(
        *(cli("run", "--lock", name, "--timeout", "300ms", "--", "true") for name in ("known", "unknown"))
    )
    assert "host1:1 (parser) for 1" in known.err and "1h" not in known.err
    assert "host2:2, since when is not known" in unknown.err and "1h" not in unknown.err


async def test_run_says_who_it_is(cli: Cli, session: Session) -> None:
    cli.environment["CODOMYRMEX_AGENT"] = "from-the-environment"
    given = ("--metadata", "agent=parser", "--metadata", "why=a=b")
    for name, more in (("x", ()), ("y", given)):
        command = ("run", "--lock", name, "--semaphore", f"s{name}", "--max", "1", *more)
        async with cli.started(*command, "--", "sh", "-c", "echo in; read x") as running:
            assert running.stdout
            await asyncio.wait_for(running.stdout.readline(), 15)
            owner = await holder(session, name)
            (permit,) = (await inspect.semaphore(core_of(session), f"s{name}")).holders
            assert owner and owner.metadata == permit.metadata
            if not more:
                assert owner.metadata["agent"] == "from-the-environment"
            else:
                assert (owner.metadata["agent"], owner.metadata["why"]) == ("parser", "a=b")
                assert "parser" in (await cli("locks")).out
    assert (await cli("run", "--lock", "x", "--metadata", "parser", "--", "true")).code == 2


async def test_a_name_that_a_dead_holder_keeps_closed_is_shown_as_lost(
    etcd: EmbeddedEtcd, namespace: str, session: Session, cli: Cli
) -> None:
    theirs = Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=2)
    async with theirs:
        await DistributedLock("x", theirs, lock_delay=60, on_loss="notify").acquire()
        owner = await holder(session, "x")
        assert owner and not owner.lost
        await revoke(theirs, theirs.id)
        owner = await holder(session, "x")
        assert owner and owner.lost
        table, whole = await asyncio.gather(cli("locks"), cli("locks", "show", "x"))
        assert " lost " in table.out and " lost " in whole.out


async def test_a_semaphore_that_nobody_can_pass_is_shown_as_stuck(cli: Cli, session: Session) -> None:
    async with Semaphore("s", max_concurrent=1, session=session):
        pass
    key = core_of(session).layout.queue("s", SEMAPHORE) + b"%016x-1.5" % session.id
    await core_of(session).transport.txn((), (Put(key, b"", session.id),))
    assert " stuck " in (await cli("semaphores")).out
