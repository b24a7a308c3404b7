"""Bad input to reservations and paths: each is refused with a text that says why, and nothing is left in etcd."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import unicodedata
from typing import Any

import pytest

from codomyrmex.concurrency import (
    ConcurrencyError,
    EmbeddedEtcd,
    InvalidName,
    LockLost,
    LockManager,
    LockTimeout,
    Session,
)
from codomyrmex.concurrency import sync as blocking
from tests.chaos.documents.gateway import Gateway
from tests.helpers import eventually

pytestmark = pytest.mark.long


@pytest.fixture
def manager(session: Session) -> LockManager:
    return LockManager(session)


@pytest.fixture
def etcd_has(etcd: EmbeddedEtcd, namespace: str) -> Any:
    """A function that tells the keys of this namespace but for its sessions' own."""
    gateway = Gateway(etcd.endpoint)
    root = f"/{namespace}/v1/"

    def keys() -> list[str]:
        found = (key.removeprefix(root) for key in gateway.keys(root))
        return [key for key in found if not key.startswith("lease/")]

    return keys


async def use(manager: LockManager, handle: str, what: str = "renew") -> None:
    reservation = manager.reservation(handle)
    await {
        "renew": reservation.renew,
        "release": reservation.release,
        "put": lambda: reservation.put("/aside/x", "late"),
    }[what]()


def damaged(handle: str) -> dict[str, str]:
    middle = len(handle) // 2
    changed = "A" if handle[middle] != "A" else "B"
    return {
        "cut in front": handle[1:],
        "cut at its end": handle[:-1],
        "cut to half": handle[:middle],
        "empty": "",
        "changed": handle[:middle] + changed + handle[middle + 1 :],
        "doubled": handle + handle,
        "with a newline within": handle[:middle] + "\n" + handle[middle:],
        "of something else": base64.urlsafe_b64encode(b'{"v": 1, "user": "me"}').decode(),
        "no text of ASCII": "é" * 40,
        "very long": "A" * 1_000_000,
    }


async def test_a_damaged_handle_is_refused_and_harms_nobody(manager: LockManager, etcd_has: Any) -> None:
    mine = await manager.reserve("x", ttl=60)
    before = etcd_has()
    for what, handle in damaged(mine.handle).items():
        for act in ("renew", "put", "release"):
            with pytest.raises((ConcurrencyError, ValueError)) as caught:
                await use(manager, handle, act)
            assert "handle" in str(caught.value), (what, act, str(caught.value))
            assert len(str(caught.value)) < 2000
            assert mine.handle not in str(caught.value), "a handle is a capability, and is never shown"
    assert etcd_has() == before
    await mine.renew()


async def test_a_handle_of_another_namespace_is_refused(
    etcd: EmbeddedEtcd, manager: LockManager, namespace: str
) -> None:
    mine = await manager.reserve("x", ttl=60)
    async with Session(endpoints=etcd.endpoint, namespace=f"{namespace}-other", session_ttl=3) as session:
        for act in ("renew", "put", "release"):
            with pytest.raises((ConcurrencyError, ValueError)) as caught:
                await use(LockManager(session), mine.handle, act)
            assert "namespace" in str(caught.value) and namespace in str(caught.value)
    await mine.renew()


@pytest.mark.parametrize("ttl", [9, 9.9, 86_401, 0, -1, float("nan"), float("inf")])
async def test_a_time_to_live_beyond_the_bounds_is_refused(manager: LockManager, etcd_has: Any, ttl: float) -> None:
    with pytest.raises(ValueError) as caught:
        await manager.reserve("x", ttl=ttl)
    assert "10" in str(caught.value) and any(most in str(caught.value) for most in ("24", "86400", "86,400"))
    assert etcd_has() == []


@pytest.mark.parametrize("ttl", [10, 86_400])
async def test_the_bounds_themselves_are_allowed(manager: LockManager, ttl: float) -> None:
    reservation = await manager.reserve("x", ttl=ttl)
    assert ttl - 3 < reservation.expires_in() <= ttl
    await reservation.release()


BAD_PATHS = {
    "a parent": "../x",
    "a parent within": "src/../../x",
    "a parent at the end": "src/..",
    "absolute": "/etc/passwd",
    "with NUL": "src/\0x",
    "with a newline": "src/a\nb",
    "with an escape": "src/\x1b[2J",
}


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS.keys())
async def test_a_bad_path_is_refused(manager: LockManager, etcd_has: Any, path: str) -> None:
    for given in ([path], ["fine.py", path]):
        with pytest.raises(InvalidName) as caught:
            await manager.reserve(paths=given, ttl=60)
        assert "path" in str(caught.value).lower() and "\x1b" not in str(caught.value) and "\0" not in str(caught.value)
        with pytest.raises(InvalidName):
            async with manager.acquire_paths(given):
                pass
    assert etcd_has() == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "src/a.py"),
        ("src/", "src/a/b.py"),
        ("src", "src/"),
        ("./src//a.py", "src/a.py"),
        ("src/./a.py", "src/a.py"),
        (unicodedata.normalize("NFD", "é.py"), "é.py"),
        ("src/**/*.py", "src/a.py"),
        ("src/*.py", "src/a/b"),
    ],
)
async def test_overlapping_paths_exclude_each_other(manager: LockManager, one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        mine = await manager.reserve(paths=[first], ttl=60)
        with pytest.raises(LockTimeout):
            await manager.reserve(paths=[second], ttl=60, timeout=0)
        await mine.release()


@pytest.mark.parametrize(("one", "other"), [("src/a", "src/ab"), ("src/", "srcs/a"), ("a.py", "A.py")])
async def test_disjoint_paths_never_wait(manager: LockManager, one: str, other: str) -> None:
    mine = await manager.reserve(paths=[one], ttl=60)
    theirs = await manager.reserve(paths=[other], ttl=60, timeout=0)
    await mine.release()
    await theirs.release()


async def test_nothing_to_reserve_is_refused(manager: LockManager) -> None:
    with pytest.raises((ValueError, TypeError)):
        await manager.reserve(ttl=60)


async def test_after_its_expiry_each_use_says_when_it_expired_and_who_has_the_name_now(
    manager: LockManager, etcd_has: Any
) -> None:
    mine = await manager.reserve("x", ttl=10, note="half way", owner="agent-7")
    next_one = await manager.reserve("x", ttl=60, timeout=20, owner="agent-8")
    assert next_one.token > mine.token and "half way" in str(next_one.left)
    for reservation in (mine, manager.reservation(mine.handle)):
        for act in (
            reservation.renew,
            reservation.release,
            lambda reservation=reservation: reservation.put("/aside/x", "late"),
        ):
            with pytest.raises(LockLost) as caught:
                await act()
            assert "expired" in str(caught.value) and "agent-8" in str(caught.value)
    assert mine.expires_in() <= 0
    await next_one.release()
    assert etcd_has() == []


async def _reserved(manager: LockManager) -> Any:
    return await manager.reserve("x", ttl=60, timeout=10, owner="next")


async def test_two_that_renew_and_release_one_handle_at_once_harm_nobody(
    manager: LockManager, other: Session, etcd_has: Any
) -> None:
    for number in range(10):
        mine = await manager.reserve("x", ttl=60, note=f"round {number}")
        waiting = asyncio.create_task(_reserved(LockManager(other)))
        await eventually(lambda: len([key for key in etcd_has() if key.startswith("lock/x/")]) == 2)
        theirs = LockManager(other).reservation(mine.handle)
        answers = await asyncio.gather(
            mine.renew(note="still at it"),
            theirs.release(note="done"),
            mine.release(),
            theirs.renew(),
            return_exceptions=True,
        )
        assert all(
            answer is None or isinstance(answer, LockLost) or not isinstance(answer, BaseException)
            for answer in answers
        )
        taken = await waiting
        assert not taken.left, "a reservation that was released leaves no note"
        for one in (mine, theirs):
            with contextlib.suppress(LockLost):
                await one.release()
            with pytest.raises(ConcurrencyError):
                await one.renew()
        await taken.renew()
        await taken.release()
        assert etcd_has() == []


async def test_a_process_that_ends_leaves_its_reservation(
    etcd: EmbeddedEtcd, namespace: str, manager: LockManager
) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        handle = (await LockManager(session).reserve(["x", "y"], ttl=60, note="on and on")).handle
    reservation = manager.reservation(handle)
    await reservation.renew()
    assert list(reservation.names) == ["x", "y"]
    info = await manager.info("y")
    assert info and info.holders[0].token == reservation.token
    await manager.force_release("x", reason="to see the other go")
    with pytest.raises(LockLost):
        await reservation.put("/aside/x", "late")


async def test_the_blocking_twin_reserves_too(etcd: EmbeddedEtcd, namespace: str, manager: LockManager) -> None:
    def work() -> tuple[str, int]:
        with blocking.Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
            mine = blocking.LockManager(session)
            with mine.reserve("block", ttl=60) as reservation:
                reservation.put("/aside/block", "x")
            kept = mine.reserve("x", ttl=60, note="by a thread")
            kept.renew(note="still")
            return kept.handle, kept.token

    handle, token = await asyncio.to_thread(work)
    reservation = manager.reservation(handle)
    assert reservation.token == token
    await reservation.release()
    assert await manager.reservations() == []


async def test_a_handle_of_a_newer_version_says_to_update(manager: LockManager) -> None:
    mine = await manager.reserve("x", ttl=60)
    version, _, rest = mine.handle.partition("_")
    newer = f"{version.rstrip('0123456789')}{int(version.lstrip('cdx')) + 1}_{rest}"
    with pytest.raises((ConcurrencyError, ValueError)) as caught:
        await use(manager, newer)
    assert "newer" in str(caught.value) or "version" in str(caught.value), str(caught.value)
    await mine.renew()
