"""Helpers of several test files: waiting for a condition, looking into etcd, counting calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from codomyrmex.concurrency import Session
from codomyrmex.concurrency.etcd.transports import factory
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of


async def eventually(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], limit: float = 5.0) -> Any:
    """The first true answer of ``condition``; fails after ``limit`` seconds."""
    deadline = time.monotonic() + limit
    while True:
        answer = condition()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still not true after {limit} s: {condition}"
        await asyncio.sleep(0.01)


async def revoke(session: Session, lease: int) -> None:
    """Revoke a lease, as an operator does, through a connection of its own."""
    client = core_of(session).transport.lease_client()
    try:
        await asyncio.to_thread(client.revoke, lease, 5.0)
    finally:
        client.close()


def begin_at_the_first() -> None:
    """Let this process's clients begin at the first endpoint of their settings, not at a random one."""
    factory.randrange = lambda count: 0  # type: ignore[attr-defined]


async def entries(session: Session, name: str) -> list[KV]:
    """The entries that etcd has in the queue of ``name``, in order of service."""
    queue = core_of(session).layout.queue(name)
    found = await core_of(session).transport.get(Get(queue, prefix_end(queue)))
    return sorted(found.kvs, key=lambda kv: kv.create_revision)


async def queue_of(session: Session, name: str, length: int, limit: float = 5.0) -> list[KV]:
    """Wait until the queue of ``name`` has ``length`` entries, and return them."""
    deadline = time.monotonic() + limit
    while len(found := await entries(session, name)) != length:
        assert time.monotonic() < deadline, f"{name!r} has {len(found)} entries, not {length}"
        await asyncio.sleep(0.01)
    return found


def gateway(endpoint: str, path: str, token: str = "", **body: object) -> dict[str, Any]:
    """A call to etcd's gateway, which needs no client of any kind."""
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


class Calls(Counter[str]):
    """Calls made on a session's transport, by name, while ``counting``."""


@contextlib.contextmanager
def counting(session: Session) -> Iterator[Calls]:
    """Count what a session sends to etcd: every unary call as it leaves, watches created and events received."""
    calls = Calls()
    transport: Any = core_of(session).transport
    hub: Any = core_of(session).hub
    call, dispatch = transport._call, hub._dispatch

    async def counted(endpoint: str, method: str, *rest: Any) -> Any:
        calls[method] += 1
        return await call(endpoint, method, *rest)

    def counted_dispatch(message: Any) -> None:
        calls["created"] += message.created
        calls["events"] += len(message.events)
        dispatch(message)

    transport._call, hub._dispatch = counted, counted_dispatch
    try:
        yield calls
    finally:
        transport._call, hub._dispatch = call, dispatch
