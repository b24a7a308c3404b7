"""Reservations: holds on a lease of their own, which any process renews, writes under and releases by the handle."""

from __future__ import annotations

import asyncio
import logging

import pytest

from codomyrmex.concurrency import (
    Compare,
    DistributedLock,
    EmbeddedEtcd,
    InvalidHandle,
    InvalidName,
    LockLost,
    LockManager,
    LockTimeout,
    Put,
    Reservation,
    Session,
    Shared,
    Target,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get
from codomyrmex.concurrency.health import cluster_status
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of
from tests.helpers import Calls, counting, entries, eventually, queue_of, revoke


async def keys_of(session: Session) -> list[bytes]:
    """Every key of the namespace but those of the open sessions."""
    core = core_of(session)
    found = await core.transport.get(Get(core.layout.root, prefix_end(core.layout.root)))
    return [
        kv.key for kv in found.kvs if b'"reservation": true' in kv.value or not kv.key.startswith(core.layout.leases)
    ]


async def reserve(session: Session, name: str) -> Reservation:
    return await LockManager(session).reserve(name, ttl=60)


def sent(calls: Calls) -> dict[str, int]:
    """The calls that left."""
    return {name: count for name, count in calls.items() if count and name not in ("created", "events")}


async def expire(session: Session, reservation: Reservation) -> None:
    """End a reservation as etcd does when its time is over."""
    await revoke(session, reservation._lease)


async def test_a_reservation_is_one_queue_entry_that_any_session_uses_by_its_handle(
    session: Session, other: Session
) -> None:
    manager = LockManager(session)
    mine = await manager.reserve("x", ttl=900, timeout=5, note="renaming", owner="agent-7")
    assert 890 < mine.expires_in() <= 900 and mine.names == ("x",) and (mine.tree, mine.paths) == (None, ())
    assert (mine.note, mine.left, mine.left_by, mine.ttl, mine.shared) == ("renaming", "", "", 900, False)
    theirs = LockManager(other).reservation(mine.handle)
    assert (theirs.token, theirs.names, theirs.expires_in()) == (mine.token, ("x",), 0.0)
    assert 890 < await theirs.check() <= 900 and theirs.note == "renaming"
    assert 890 < await theirs.renew(note="half done") <= 900
    await mine.check()
    assert mine.note == "half done"
    assert await theirs.put("/app/x", "text") > mine.token and await mine.get("/app/x") == b"text"
    result = await mine.txn(Put(b"/app/x", b"2"), compare=[Compare(b"/app/x", Target.VALUE, b"other")])
    assert not result.succeeded
    assert await mine.delete("/app/x") and not await mine.delete("/app/x")
    await theirs.release()
    await theirs.release()
    await eventually(lambda: _nothing(session))
    with pytest.raises(LockLost, match=r"gone, \d+ s before its time was over.*'x' is free now"):
        await mine.put("/app/x", "text")


async def _nothing(session: Session) -> bool:
    return not await keys_of(session)


async def test_it_outlives_its_session_and_keeps_its_token(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as brief:
        mine = await LockManager(brief).reserve("x", ttl=60)
        waiting = asyncio.create_task(DistributedLock("x", brief).acquire())
        await queue_of(other, "x", 2)
    with pytest.raises(Exception, match="session was closed"):
        await waiting
    (kept,) = await entries(other, "x")
    assert kept.create_revision == mine.token
    (info,) = await LockManager(other).reservations()
    assert (info.names, info.token, info.ttl) == (("x",), mine.token, 60)
    lock = await LockManager(other).info("x")
    assert lock and lock.holders[0].ttl == 60 and not lock.holders[0].lost
    await LockManager(other).reservation(mine.handle).release()


async def test_a_lost_session_leaves_it_alone(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", ttl=60)
    await revoke(session, session.id)
    await session.lost.wait()
    assert await LockManager(other).reservation(mine.handle).check() > 50
    assert not mine.lost.is_set()


async def test_waiters_of_every_session_wait_for_it(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", ttl=60)
    tasks = []
    for one in (session, other, session):
        tasks.append(asyncio.create_task(DistributedLock("x", one).acquire()))
        await queue_of(session, "x", len(tasks) + 1)
    again = asyncio.create_task(reserve(other, "x"))
    await queue_of(session, "x", 5)
    assert not any(task.done() for task in tasks)
    await mine.release()
    tokens = [mine.token]
    for task in tasks:
        grant = await asyncio.wait_for(task, 5)
        tokens.append(grant.token)
        await grant.release()
    theirs = await asyncio.wait_for(again, 5)
    assert [*tokens, theirs.token] == sorted({*tokens, theirs.token})
    await theirs.release()


async def test_a_waiter_behind_a_local_entry_that_becomes_a_reservation_waits_for_its_end(session: Session) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x")
    reserving = asyncio.create_task(reserve(session, "x"))
    await queue_of(session, "x", 2)
    waiting = asyncio.create_task(DistributedLock("x", session).acquire())
    await queue_of(session, "x", 3)
    await grant.release()
    mine = await asyncio.wait_for(reserving, 5)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await mine.release()
    await (await asyncio.wait_for(waiting, 5)).release()


async def test_the_next_holder_is_told_what_an_expired_one_left(session: Session, other: Session) -> None:
    manager = LockManager(session)
    first = await manager.reserve("x", "y", ttl=60, note="begun", owner="agent-7")
    await first.renew(note="half done: the parser is renamed")
    await expire(session, first)
    second = await LockManager(other).reserve("y", ttl=60)
    assert (second.left, second.left_by) == ("half done: the parser is renamed", "agent-7")
    assert second.token > first.token
    await second.release()
    third = await manager.reserve("x", ttl=60, note="mine")
    assert third.left == "half done: the parser is renamed"
    await third.release()
    fourth = await manager.reserve("x", "y", ttl=60)
    assert (fourth.left, fourth.left_by) == ("", "")
    await fourth.release()
    await eventually(lambda: _nothing(session))


async def test_a_reader_beside_a_reader_is_not_told_its_note(session: Session, other: Session) -> None:
    first = await LockManager(session).reserve("x", ttl=60, shared=True, note="alive")
    gone = await LockManager(session).reserve("x", ttl=60, shared=True, note="gone")
    await expire(session, gone)
    second = await LockManager(other).reserve("x", ttl=60, shared=True)
    assert second.left == "gone"
    await expire(session, first)
    await second.release()
    third = await LockManager(other).reserve("x", ttl=60)
    assert third.left == "alive"
    await third.release()
    await eventually(lambda: _nothing(session))


async def test_after_a_long_wait_it_has_its_whole_time(session: Session, other: Session) -> None:
    grant = await LockManager(other).acquire("x")
    reserving = asyncio.create_task(ten_seconds(session, "x"))
    await queue_of(session, "x", 2)
    await asyncio.sleep(4)
    await grant.release()
    mine = await asyncio.wait_for(reserving, 5)
    assert mine.expires_in() > 9 and await mine.check() > 8
    await mine.release()


async def ten_seconds(session: Session, name: str) -> Reservation:
    return await LockManager(session).reserve(name, ttl=10)


async def test_an_expired_one_says_when_and_by_whom_it_is_held_now(session: Session, other: Session) -> None:
    first = await LockManager(session).reserve("x", ttl=60)
    opened = LockManager(other).reservation(first.handle)
    await expire(session, first)
    second = await LockManager(other).reserve("x", ttl=60, owner="agent-8")
    first._until -= 70  # type: ignore[operator]
    for use in (first.check, first.renew, lambda: first.put("/app/x", ""), lambda: first.get("/app/x"), first.release):
        with pytest.raises(LockLost, match=r"expired 1\d s ago, at 2\d.*'x' is held now by pid .* agent 'agent-8'"):
            await use()
    assert first.lost.is_set() and first.lost.reason
    with pytest.raises(LockLost, match="has expired, or was released or taken away; 'x' is held now by"):
        await opened.renew()
    assert await second.check() > 50
    await second.release()


async def test_several_names_are_held_on_one_token_and_lost_together(session: Session, other: Session) -> None:
    manager = LockManager(session)
    mine = await manager.reserve(["a", Shared("b")], "c", ttl=60)
    assert mine.names == ("a", "b", "c") and not mine.shared
    assert {(await entries(session, name))[0].create_revision for name in "abc"} == {mine.token}
    reader = await LockManager(other).reserve("b", ttl=60, shared=True)
    assert reader.shared and reader.token > mine.token
    with pytest.raises(LockTimeout, match="'c' is held by"):
        await LockManager(other).reserve("c", "d", ttl=60, timeout=0.3)
    await queue_of(session, "d", 0)
    await manager.force_release("c", reason="it is wanted")
    for use in (mine.check, mine.renew, lambda: mine.put("/app/x", "")):
        with pytest.raises(LockLost, match=r"released by force by .*: it is wanted"):
            await use()
    await eventually(lambda: _free(session, "a"))
    await reader.release()


async def test_one_entry_that_is_deleted_takes_the_others_along(session: Session, other: Session) -> None:
    for use in ("check", "renew", "release", "put"):
        mine = await LockManager(session).reserve("a", "b", ttl=60)
        theirs = LockManager(other).reservation(mine.handle)
        await mine.renew(ttl=90)  # so the handle names a lease that is no more
        await core_of(other).transport.delete(Delete(mine._handle.keys[1]))
        with pytest.raises(LockLost, match="'b' is free now"):
            await (theirs.put("/app/x", "") if use == "put" else getattr(theirs, use)())
        await eventually(lambda: _nothing(session))


async def test_a_timeout_of_zero_tries_once(session: Session, other: Session) -> None:
    async with DistributedLock("x", other):
        with pytest.raises(LockTimeout, match="'x' is held by"):
            await LockManager(session).reserve("x", "y", ttl=60, timeout=0)
    mine = await LockManager(session).reserve("x", "y", ttl=60, timeout=0)
    assert await mine.check() > 50
    await mine.release()
    await eventually(lambda: _nothing(session))


async def _free(session: Session, name: str) -> bool:
    return not await entries(session, name)


async def test_a_forced_release_ends_the_whole_reservation_at_once(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("a", "b", ttl=60)
    owner = await LockManager(other).force_release("a", reason="gone", token=mine.token)
    assert owner.ttl == 60
    await (await LockManager(other).acquire("b", timeout=2)).release()
    with pytest.raises(LockLost):
        await mine.renew()


async def test_paths_and_names_are_reserved_together(session: Session, other: Session) -> None:
    manager = LockManager(session)
    mine = await manager.reserve("x", paths=["./src//parser/", "docs/**/*.md"], tree="main", ttl=60, note="parsing")
    assert (mine.names, mine.tree, mine.paths) == (("x",), "main", ("src/parser/", "docs/"))
    theirs = LockManager(other).reservation(mine.handle)
    assert (theirs.names, theirs.tree, theirs.paths) == (("x",), "main", ())
    await theirs.check()
    assert theirs.paths == ("src/parser/", "docs/")
    beside = await LockManager(other).reserve(paths=["src/lexer/"], tree="main", ttl=60, note="lexing")
    assert beside.left == ""
    with pytest.raises(LockTimeout, match="parsing"):
        await LockManager(other).reserve(paths=["src/parser/a.py"], tree="main", ttl=60, timeout=0.3)
    await theirs.renew(note="half")
    (info, _) = await manager.reservations()
    assert (info.names, info.paths, info.tree, info.note) == (("x",), ("src/parser/", "docs/"), "main", "half")
    await expire(session, mine)
    readme = await LockManager(other).reserve(paths=["README.md"], tree="main", ttl=60)
    assert readme.left == ""
    after = await LockManager(other).reserve(paths=["src/parser/a.py"], tree="main", ttl=60, owner="agent-8")
    assert after.left == "half" and after.token > mine.token
    with pytest.raises(LockLost, match=r"its part of the tree 'main' is held now by .*agent 'agent-8'") as caught:
        await mine.put("/app/x", "")
    assert "lexing" not in str(caught.value)
    for one in (beside, readme, after):
        await one.release()
    lock = await LockManager(other).reserve("x", ttl=60)
    assert lock.left == "half"
    await lock.release()
    await eventually(lambda: _nothing(session))


async def test_watchers_are_told_of_a_release_and_of_an_expiry(session: Session, other: Session) -> None:
    events: list[tuple[str, str]] = []

    async def watch() -> None:
        async for event in LockManager(other).watch():
            events.append((event.kind, event.name))

    watching = asyncio.create_task(watch())
    manager = LockManager(session)
    first = await manager.reserve("a", "b", ttl=60)
    await eventually(lambda: len(events) == 4)
    await first.release()
    await eventually(lambda: len(events) == 6)
    second = await manager.reserve("c", paths=["d/"], ttl=60)
    await expire(session, second)
    await eventually(lambda: len(events) == 12)
    watching.cancel()
    assert sorted(events[4:6]) == [("released", "a"), ("released", "b")]
    assert sorted(events[10:]) == [("expired", "c"), ("expired", "default")]


async def test_the_end_of_a_block_releases_it(session: Session) -> None:
    async with LockManager(session).reserve("x", ttl=60, note="n") as mine:
        assert await mine.check() > 50
    await eventually(lambda: _nothing(session))
    with pytest.raises(LockLost, match="was released by this object"):
        await mine.renew()
    with pytest.raises(ZeroDivisionError):
        async with LockManager(session).reserve("x", ttl=60):
            raise ZeroDivisionError
    with pytest.raises(LockLost):
        async with LockManager(session).reserve("x", ttl=60) as mine:
            await expire(session, mine)
    with pytest.raises(ZeroDivisionError) as caught:
        async with LockManager(session).reserve("x", ttl=60) as mine:
            await expire(session, mine)
            raise ZeroDivisionError
    assert "is gone" in caught.value.__notes__[0]
    await eventually(lambda: _nothing(session))


async def test_another_ttl_keeps_the_handle_valid(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", "y", ttl=60, note="n")
    assert await mine.renew(ttl=900) > 890 and mine.ttl == 900
    theirs = LockManager(other).reservation(mine.handle)
    assert await theirs.check() > 890
    assert await theirs.renew() > 890 and theirs.ttl == 900
    assert (await mine.renew(ttl=30, note="m")) <= 30 and mine.ttl == 30
    assert await theirs.check() <= 30 and theirs.note == "m"
    await theirs.release()
    await eventually(lambda: _nothing(session))


async def test_keepalive_renews_it_and_learns_of_a_loss(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await LockManager(session).reserve("x", ttl=10, keepalive=True)
    mine._until = 0.0
    await eventually(lambda: mine.expires_in() > 5, 6)
    await expire(session, mine)
    await asyncio.wait_for(mine.lost.wait(), 6)
    assert isinstance(mine.lost.reason, LockLost)


async def test_bad_input_is_refused_before_anything_is_asked(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    manager = LockManager(session)
    with counting(session) as calls:
        for ttl in (9.9, 86401, float("nan"), 0, -1):
            with pytest.raises(ValueError, match="ttl must be from 10 seconds to 24 hours"):
                manager.reserve("x", ttl=ttl)
        with pytest.raises(TypeError, match="ttl must be a number"):
            manager.reserve("x", ttl="1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs a name"):
            manager.reserve(ttl=60)
        with pytest.raises(InvalidName):
            manager.reserve("", ttl=60)
        with pytest.raises(InvalidName):
            manager.reserve(7, ttl=60)  # type: ignore[arg-type]
        with pytest.raises(InvalidName, match="not bytes"):
            manager.reserve(b"x", ttl=60)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="4096 bytes"):
            manager.reserve("x", ttl=60, note="x" * 4097)
        with pytest.raises(ValueError, match="surrogates"):
            manager.reserve("x", ttl=60, note="\ud800")
        with pytest.raises(ValueError, match="owner must be"):
            manager.reserve("x", ttl=60, owner="")
        with pytest.raises(ValueError, match="at most 40 names"):
            manager.reserve([f"n{n}" for n in range(41)], ttl=60)
        with pytest.raises(InvalidHandle, match="no handle"):
            manager.reservation("hello")
    assert not calls
    with pytest.warns(RuntimeWarning, match="the reservation of the lock 'x' was never awaited"):
        manager.reserve("x", ttl=60)


async def test_forty_names_fit_one_transaction(session: Session) -> None:
    mine = await LockManager(session).reserve([f"n{n}" for n in range(40)], ttl=60, note="n")
    await mine.renew(note="m", ttl=90)
    await mine.put("/app/x", "")
    await mine.release(note="done")
    await eventually(lambda: _nothing(session))


async def test_a_handle_of_another_namespace_is_refused(session: Session, etcd: EmbeddedEtcd) -> None:
    mine = await LockManager(session).reserve("x", ttl=60)
    async with Session(endpoints=etcd.endpoint, namespace="elsewhere") as elsewhere:
        with pytest.raises(InvalidHandle, match=f"namespace '{session.settings.namespace}', not of 'elsewhere'"):
            LockManager(elsewhere).reservation(mine.handle)
    await mine.release()


async def test_its_handle_is_in_no_repr_and_no_log(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    mine = await LockManager(session).reserve("x", ttl=60, note="n")
    texts = [repr(mine), str(mine)]
    await mine.renew()
    await expire(session, mine)
    with pytest.raises(LockLost) as caught:
        await mine.renew()
    texts += [str(caught.value), repr(caught.value), caplog.text, repr(await LockManager(session).reservations())]
    assert mine.handle not in "".join(texts)
    assert repr(mine) == f"<Reservation of 'x' with token {mine.token}, lost>"


async def test_reservations_are_listed_with_time_left_note_and_owner(session: Session, other: Session) -> None:
    manager = LockManager(session)
    first = await manager.reserve("b", "a", ttl=60, note="one", owner="agent-7", metadata={"task": 3})
    second = await LockManager(other).reserve("c", ttl=900, shared=True, owner="agent-8")
    grant = await manager.acquire("d", lock_delay=5)
    waiting = asyncio.create_task(reserve(session, "c"))
    await queue_of(session, "c", 2)
    one, two = await LockManager(other).reservations()
    assert (one.names, one.owner, one.note, one.token, one.ttl) == (("a", "b"), "agent-7", "one", first.token, 60)
    assert one.metadata == {"agent": "agent-7", "task": 3} and 55 < one.expires_in <= 60 and not one.shared
    assert (two.names, two.shared, two.token) == (("c",), True, second.token)
    assert [info.token for info in await manager.reservations(owner="agent-8")] == [second.token]
    assert await manager.reservations(owner="nobody") == []
    await first.release()
    await second.release()
    await (await waiting).release()
    await grant.release()


async def test_renewals_at_once_each_tell_the_time_that_is_left(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", ttl=600)
    theirs = LockManager(other).reservation(mine.handle)
    for ttl in (300, 400, 500, 600, 700, 800):
        times = await asyncio.gather(theirs.renew(ttl=ttl), mine.renew(note=f"{ttl}"), mine.renew(), theirs.renew())
        assert min(times) > 250, times


async def test_a_note_that_is_taken_back_or_moved_leaves_no_lease(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", ttl=600, note="begun")
    core = core_of(session)

    async def note_lease() -> int:
        (kv,) = (await core.transport.get(Get(core.layout.left(mine._handle.keys[0])))).kvs
        return kv.lease

    first = await note_lease()
    await mine.renew(ttl=700)
    second = await note_lease()
    await mine.renew(note="")
    assert first != second
    for lease in (first, second):
        await eventually(lambda lease=lease: _is_gone(other, lease))
    await mine.release()


async def _is_gone(session: Session, lease: int) -> bool:
    return not await core_of(session).transport.time_to_live(lease)


async def test_status_counts_sessions_and_not_the_leases_of_reservations(session: Session, other: Session) -> None:
    await reserve(session, "x")
    await reserve(other, "y")
    status = await cluster_status(session.settings)
    assert (status.sessions, status.locks) == (2, 2)


async def test_two_sessions_that_renew_and_release_one_handle_at_once_harm_nobody(
    session: Session, other: Session
) -> None:
    for _ in range(20):
        mine = await LockManager(session).reserve("x", ttl=60, note="n")
        theirs = LockManager(other).reservation(mine.handle)
        results = await asyncio.gather(
            mine.renew(note="a"), theirs.release(), mine.release(), theirs.renew(note="b"), return_exceptions=True
        )
        assert all(result is None or isinstance(result, float | LockLost) for result in results), results
        assert [results[1], results[2]].count(None) == 1
        after = await LockManager(other).reserve("x", ttl=60, timeout=5)
        assert after.left == "" and after.token > mine.token
        with pytest.raises(LockLost):
            await theirs.put("/app/x", "")
        await after.release()
    await eventually(lambda: _nothing(session))


async def test_sessions_that_give_it_other_times_and_notes_at_once_keep_it(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", "y", ttl=60, note="n")
    theirs = LockManager(other).reservation(mine.handle)

    async def rewrite(reservation: Reservation, first: int) -> None:
        for number in range(25):
            await reservation.renew(note=f"{first} {number}", ttl=first + number % 3)

    await asyncio.gather(
        rewrite(mine, 60), rewrite(theirs, 70), rewrite(LockManager(other).reservation(mine.handle), 80)
    )
    assert await mine.check() > 50 and await theirs.put("/app/x", "") > mine.token
    await theirs.release()
    await eventually(lambda: _nothing(session))


async def test_a_renewal_that_meets_the_move_to_another_lease_follows_it(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await LockManager(session).reserve("x", ttl=60)
    theirs = LockManager(other).reservation(mine.handle)
    transport = core_of(other).transport
    keep_alive = transport.keep_alive

    async def late(lease: int) -> int:
        """Renew after the entries were read, and after another session has moved them and revoked ``lease``."""
        monkeypatch.undo()
        await asyncio.sleep(0.2)
        await mine.renew(ttl=90)
        await eventually(lambda: _is_gone(other, lease))
        return await keep_alive(lease)

    monkeypatch.setattr(transport, "keep_alive", late)
    assert 80 < await theirs.renew() <= 90 and theirs.ttl == 90
    await mine.release()


async def _is_gone(session: Session, lease: int) -> bool:
    return not await core_of(session).transport.time_to_live(lease)


async def test_the_wire_carries_two_round_trips_to_reserve_one_to_renew_and_one_to_release(session: Session) -> None:
    manager = LockManager(session)
    with counting(session) as calls:
        mine = await manager.reserve("x", ttl=60)
    assert sent(calls) == {"txn": 2, "grant": 1}  # the lease is granted beside the join
    with counting(session) as calls:
        await mine.renew()
    assert sent(calls) == {"txn": 1, "renew": 1}  # beside each other
    with counting(session) as calls:
        await mine.put("/app/x", "")
    assert sent(calls) == {"txn": 1}
    await mine.renew(note="n")
    with counting(session) as calls:
        await mine.renew(note="half done")
        await eventually(lambda: calls["renew"] == 2)
    assert sent(calls) == {"txn": 2, "renew": 2}  # the lease of the note is renewed in the background
    await mine.renew(note="")
    with counting(session) as calls:
        await mine.release()
        assert calls["txn"] == 1
        await eventually(lambda: calls["revoke"])
    assert sent(calls) == {"txn": 1, "delete": 1, "revoke": 1}  # the lease, in the background
