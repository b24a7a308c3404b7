"""Smaller promises of reservations: what is listed and shown, renewal by activity, the way out of a block."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, LockLost, LockManager, LockTimeout, Session
from tests.chaos.documents.gateway import Gateway
from tests.helpers import eventually

pytestmark = pytest.mark.long


@pytest.fixture
def manager(session: Session) -> LockManager:
    return LockManager(session)


@pytest.fixture
def gateway(etcd: EmbeddedEtcd) -> Gateway:
    return Gateway(etcd.endpoint)


def leases(gateway: Gateway) -> set[int]:
    return {int(one["ID"]) for one in gateway.call("lease/leases").get("leases", ())}


async def test_a_handle_is_never_shown(
    manager: LockManager, gateway: Gateway, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mine = await manager.reserve("x", ttl=60, note="a note")
    await mine.renew(note="another")
    shown = [repr(mine), str(mine), repr(await manager.reservations()), repr(await manager.info("x")), caplog.text]
    shown += [value.decode() for value in gateway.keys(f"/{namespace}/").values()]
    assert not any(mine.handle in text for text in shown)
    assert mine.handle.isascii() and all(sign.isalnum() or sign in "-_.~" for sign in mine.handle)


async def test_reservations_are_listed_by_owner_with_note_and_time(manager: LockManager, other: Session) -> None:
    mine = await manager.reserve("x", "y", ttl=60, note="first", owner="agent-7")
    await LockManager(other).reserve(paths=["src/"], ttl=30, owner="agent-8")
    await mine.renew(note="second")
    listed = await LockManager(other).reservations(owner="agent-7")
    assert [(one.owner, one.note, one.token, sorted(one.names)) for one in listed] == [
        ("agent-7", "second", mine.token, ["x", "y"])
    ]
    assert 55 < listed[0].expires_in <= 60
    assert len(await manager.reservations()) == 2


async def test_a_renewal_gives_the_whole_time_and_use_alone_gives_none(manager: LockManager, other: Session) -> None:
    mine = await manager.reserve("x", ttl=10)
    theirs = LockManager(other).reservation(mine.handle)
    for _ in range(3):
        await asyncio.sleep(4)
        await theirs.renew()
        assert 9 < theirs.expires_in() <= 10
    for _ in range(26):
        await asyncio.sleep(0.5)
        try:
            await mine.put("/aside/x", "x")
        except LockLost:
            break
    else:
        pytest.fail("writes keep a reservation alive, only renewals should")


async def test_keepalive_renews_until_the_session_ends(
    etcd: EmbeddedEtcd, namespace: str, manager: LockManager
) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        mine = await LockManager(session).reserve("x", ttl=10, keepalive=True)
        await asyncio.sleep(14)
        await mine.put("/aside/x", "x")
    with pytest.raises(LockTimeout):
        await manager.reserve("x", ttl=10, timeout=1)
    assert await manager.reserve("x", ttl=10, timeout=15)


async def test_a_block_releases_at_its_end_whatever_ends_it(
    manager: LockManager, gateway: Gateway, namespace: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with manager.reserve("x", paths=["src/"], ttl=60, note="in the block"):
            raise ZeroDivisionError
    assert not [key for key in gateway.keys(f"/{namespace}/v1/") if "/lease/" not in key]


async def test_what_was_released_leaves_no_lease(manager: LockManager, gateway: Gateway) -> None:
    before = leases(gateway)
    for number in range(5):
        mine = await manager.reserve("x", ttl=60, note=f"round {number}")
        await mine.renew(note="half done")
        await mine.release(note="done")
    await asyncio.sleep(1)
    assert len(leases(gateway) - before) <= 2, "one or two leases may be made in advance"


async def test_notes_that_were_told_leave_no_lease(manager: LockManager, gateway: Gateway, namespace: str) -> None:
    before = leases(gateway)
    names = [f"n{number}" for number in range(4)]
    for name in names:
        await manager.reserve(name, ttl=10, note=f"interrupted at {name}")
    for name in names:
        taken = await manager.reserve(name, ttl=10, timeout=15)
        assert f"interrupted at {name}" in str(taken.left)
        await taken.release()
        assert not (await manager.reserve(name, ttl=10)).left, "it was told once, and the taker has released"
    assert not gateway.keys(f"/{namespace}/v1/left/")
    await asyncio.sleep(13)
    assert len(leases(gateway) - before) <= 2, "one or two leases may be made in advance"


async def test_each_of_several_interrupted_predecessors_is_told(manager: LockManager) -> None:
    await manager.reserve("a", ttl=10, note="note of a")
    await manager.reserve("b", ttl=10, note="note of b")
    await manager.reserve(paths=["src/a.py"], ttl=10, note="note of src/a.py")
    await manager.reserve(paths=["src/b.py"], ttl=10, note="note of src/b.py")
    await asyncio.sleep(12)
    told = str((await manager.reserve("a", "b", ttl=10)).left)
    below = str((await manager.reserve(paths=["src/"], ttl=10)).left)
    assert "note of a" in told and "note of b" in told, told
    assert "src/a.py" in below and "src/b.py" in below, below


async def test_a_forced_release_is_no_expiry_and_a_release_tells_nothing(manager: LockManager) -> None:
    await manager.reserve("x", ttl=60, note="taken away")
    await manager.force_release("x", reason="its agent is gone")
    taken = await manager.reserve("x", ttl=60, note="given back")
    await taken.release(note="done")
    after = await manager.reserve("x", ttl=60)
    assert not after.left
    assert not taken.left, "documented: the note of a predecessor that expired"


async def test_waiters_that_are_killed_leave_no_lease(
    etcd: EmbeddedEtcd, manager: LockManager, gateway: Gateway, namespace: str
) -> None:
    await manager.reserve("x", ttl=60)
    await asyncio.sleep(1)
    before = leases(gateway)
    given = json.dumps({"name": "x", "ttl": 10, "note": "waiting"})
    command = (sys.executable, "-m", "tests.integration.reserver", etcd.endpoint, namespace, "reserve", given)
    waiting = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]
    await eventually(lambda: len(gateway.keys(f"/{namespace}/v1/lock/x/")) == 4, 20)
    await asyncio.sleep(0.5)
    theirs = leases(gateway) - before
    for process in waiting:
        process.kill()
        await process.wait()
    await asyncio.sleep(14)
    granted = [gateway.call("lease/timetolive", ID=str(lease)).get("grantedTTL", 0) for lease in theirs]
    assert sum(int(seconds) > 3600 for seconds in granted) == 0, "what is made in advance must not stay for a day"


async def test_a_cancelled_or_late_request_leaves_nothing(
    manager: LockManager, other: Session, gateway: Gateway, namespace: str
) -> None:
    mine = await manager.reserve("x", ttl=60)
    keys = set(gateway.keys(f"/{namespace}/v1/"))
    with pytest.raises(LockTimeout) as caught:
        await LockManager(other).reserve("x", ttl=60, timeout=0.5)
    assert "x" in str(caught.value)

    async def wait() -> None:
        await LockManager(other).reserve("x", ttl=60)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.5)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await eventually(lambda: set(gateway.keys(f"/{namespace}/v1/")) == keys)
    await mine.release()


async def test_a_reservation_is_a_holder_to_all_who_look(manager: LockManager, other: Session) -> None:
    mine = await manager.reserve("x", ttl=60, owner="agent-7", note="a note")
    info = await LockManager(other).info("x")
    assert info and info.holders[0].token == mine.token and info.holders[0].metadata["agent"] == "agent-7"
    with pytest.raises(LockTimeout) as caught:
        async with LockManager(other).acquire("x", timeout=0.2):
            pass
    assert "agent-7" in str(caught.value)
    await LockManager(other).force_release("x", reason="its agent is gone")
    for act in (mine.renew, mine.release):
        with pytest.raises(LockLost):
            await act()
    async with LockManager(other).acquire("x", timeout=5) as grant:
        assert grant.token > mine.token


async def test_the_whole_time_is_given_however_long_the_process_was_idle(manager: LockManager) -> None:
    await manager.reserve("x", ttl=10)
    await asyncio.sleep(8)
    mine = await manager.reserve("y", ttl=10)
    assert 9 < mine.expires_in() <= 10
    await asyncio.sleep(8.5)
    await mine.put("/aside/y", "still mine")


async def test_a_renewal_may_give_another_time_within_the_bounds(manager: LockManager) -> None:
    mine = await manager.reserve("x", ttl=10)
    await mine.renew(ttl=60)
    assert 55 < mine.expires_in() <= 60
    await asyncio.sleep(13)
    await mine.put("/aside/x", "still mine")
    for ttl in (9, 86_401):
        with pytest.raises(ValueError):
            await mine.renew(ttl=ttl)
    later = manager.reservation(mine.handle)
    await later.renew()
    await later.release()


@pytest.mark.parametrize("note", ["\x1b[2J", "\0", "x" * 1_000_000, "é" * 4_000, "line\nline"])
async def test_an_odd_note_is_refused_or_harmless(manager: LockManager, note: str) -> None:
    mine = await manager.reserve("x", ttl=60)
    for act in (mine.renew, mine.release):
        try:
            await act(note=note)
        except ValueError as error:
            assert "note" in str(error) and len(str(error)) < 1000
    assert "\x1b" not in repr(mine)
