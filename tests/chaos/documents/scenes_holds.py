"""Scenarios 11 and 12: trust that ends just before a grant, and losses while etcd is away."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from codomyrmex.concurrency import ConcurrencyError, LockManager, Semaphore, sync
from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.documents.rig import Rig

TTL = 3


async def granted_without_trust(rig: Rig) -> None:
    """Trust ends between the second write of a lock with `lock_delay` and its grant, at one moment after the other."""
    near = LockManager(await rig.session(request_timeout=10))
    await asyncio.gather(*(_late_grant(rig, near, n) for n in range(24)))
    await rig.mark()


async def _late_grant(rig: Rig, near: LockManager, number: int) -> None:
    proxy, name = await rig.proxy(), f"closed-{number}"
    far = LockManager(await rig.session(proxy, request_timeout=10, session_ttl=TTL))
    await near.acquire(f"warm-{number}")

    async def hold() -> None:
        async with rig.does.hold("lock", name, far.acquire(name, lock_delay=1.0)):
            await asyncio.sleep(6)

    async def other() -> None:
        await asyncio.sleep(1)
        async with rig.does.hold("lock", name, near.acquire(name)):
            await asyncio.sleep(0.5)

    proxy.delay(0.06)  # each exchange takes 0.12 s, so that the steps of an acquire lie apart
    tasks = [asyncio.create_task(rig.does.within(20, f"{who.__name__} of {name}", who())) for who in (hold, other)]
    await asyncio.sleep(0.3 + 0.1 * (number % 6))
    proxy.blackhole(up=number % 2 == 0, down=True)
    await asyncio.sleep(2 * TTL / 3 + (0.1, 0.4, 1.2, 3.0)[number // 6])
    proxy.resume()
    await asyncio.wait(tasks)


async def lost_while_away(rig: Rig) -> None:
    """Etcd goes away while locks, permits and several locks are held; each block's end says `LockLost`."""
    ways: dict[str, Any] = {
        "lock": lambda manager: manager.acquire("alone"),
        "shared": lambda manager: manager.acquire("read", shared=True),
        "delayed": lambda manager: manager.acquire("closed", lock_delay=1.0),
        "bounded": lambda manager: manager.acquire("bounded", max_hold=60),
    }
    names = {"lock": "alone", "shared": "read", "delayed": "closed", "bounded": "bounded"}
    proxies: list[TcpProxy] = []
    tasks: list[asyncio.Task[None]] = []
    for ttl in (2, 5):
        proxy = await rig.proxy()
        proxies.append(proxy)
        session = await rig.session(proxy, session_ttl=ttl, request_timeout=1.0, dial_timeout=1.0)
        manager = LockManager(session)
        for way, acquiring in ways.items():
            kept = _kept(rig, "lock", names[way], acquiring(manager), way == "shared")
            tasks.append(asyncio.create_task(rig.does.within(25, f"{way} with TTL {ttl}", kept)))
        semaphore = Semaphore("gate", max_concurrent=10, session=session)
        tasks.append(asyncio.create_task(_kept(rig, "semaphore", "gate", semaphore.hold(permits=2), False)))
        tasks.append(asyncio.create_task(_several(rig, manager)))
        blocking = asyncio.to_thread(_blocking, rig, proxy.endpoint, ttl)
        tasks.append(asyncio.create_task(rig.does.within(25, "the blocking twin", blocking)))
        await asyncio.sleep(1.5)
        proxy.refuse()
        proxy.blackhole()
        await asyncio.wait(tasks, timeout=14)
    for proxy in proxies:
        proxy.resume()
    await asyncio.wait(tasks)
    await rig.mark()


async def _kept(rig: Rig, kind: str, name: str, acquiring: Any, shared: bool) -> None:
    async with rig.does.hold(kind, name, acquiring, shared=shared):
        await asyncio.sleep(12)


async def _several(rig: Rig, manager: LockManager) -> None:
    """Several locks at once: the loss of one is the loss of all, and the block's end says so."""
    error: str | None = None
    grants: list[Any] = []
    try:
        async with manager.acquire_all(["a", "b"]) as got:
            grants = list(got)
            await asyncio.sleep(12)
    except ConcurrencyError as raised:
        error = type(raised).__name__
    _say_lost(rig, "acquire_all", grants[0], error)


def _blocking(rig: Rig, endpoint: str, ttl: int) -> None:
    """The blocking twin: its block notices the loss by itself, and the block's end raises."""
    error: str | None = None
    settings = {"namespace": rig.does.namespace, "session_ttl": ttl, "request_timeout": 1.0, "dial_timeout": 1.0}
    session = sync.Session(endpoints=endpoint, **settings)
    try:
        with session:
            try:
                with sync.LockManager(session).acquire(f"thread-{ttl}") as grant:
                    grant.lost.wait(12)
            except ConcurrencyError as raised:
                error = type(raised).__name__
            _say_lost(rig, "sync", grant, error)
    except ConcurrencyError as raised:
        rig.does.say("raised", what="closing a session", error=str(raised), documented=True)


def _say_lost(rig: Rig, what: str, grant: Any, error: str | None) -> None:
    lost = grant.lost.is_set()
    hold = f"{what}-{threading.get_ident()}-{time.monotonic()}"
    about = {"ns": rig.does.namespace, "kind": "lock", "name": grant.name, "token": grant.token}
    rig.does.say("hold", hold=hold, **about, shared=False, permits=1, trust=1.0, at=time.monotonic() - 1e-3)
    rig.does.say("held", hold=hold, error=error, overrun=0.0, lost=lost)


SCENES = {"11-granted-without-trust": granted_without_trust, "12-lost-while-away": lost_while_away}
