"""The names of locks, semaphores, pools and dead letter queues, for a shell to complete.

Needs no lease, so a prompt costs etcd a few small reads and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.protocol import Get, Transport
from codomyrmex.concurrency.keys import Layout, check_name, escape, forms, name_in, prefix_end
from codomyrmex.concurrency.settings import EtcdSettings

Kind = Literal["lock", "semaphore", "pool", "dead letter queue"]

_SEGMENTS: dict[Kind, bytes] = {
    "lock": b"lock/",
    "semaphore": b"semaphore/",
    "pool": b"pool/",
    "dead letter queue": b"dead/",
}


def checked(name: str) -> str:
    """``name`` in the form that the library uses, NFC. Raises ``InvalidName`` for a text that cannot be a name."""
    return check_name(name)


async def beginning_with(
    prefix: str, kind: Kind, settings: EtcdSettings, *, limit: int = 100, timeout: float = 1.0
) -> list[str]:
    """At most ``limit`` printable names of a kind that start with ``prefix``, in the order of their keys.

    Raises ``TimeoutError`` after ``timeout`` seconds, and an ``EtcdError`` if etcd refuses or cannot be reached.
    """
    under = Layout(settings.namespace).root + _SEGMENTS[kind]
    found: list[str] = []
    transport = transport_for(settings.model_copy(update={"dial_timeout": timeout, "request_timeout": timeout}))
    try:
        async with asyncio.timeout(timeout):
            for form in forms(prefix):
                found += await _scan(transport, under, under + escape(form).encode(), limit - len(found))
    finally:
        await transport.close()
    return found


async def _scan(transport: Transport, under: bytes, start: bytes, limit: int) -> list[str]:
    """The names from ``start`` on: one read of a single key for each name, which skips the name's other keys."""
    end = prefix_end(start)
    found: list[str] = []
    while len(found) < limit and (page := await transport.get(Get(start, end, limit=1))).kvs:
        segment = page.kvs[0].key[len(under) :].partition(b"/")[0]
        name = name_in(segment)
        if name is not None and name.isprintable():
            found.append(name)
        start = prefix_end(under + segment + b"/")
    return found
