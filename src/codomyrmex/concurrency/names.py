"""The names of locks, semaphores, elections, groups, rate limiters, pools and dead letter queues, for a shell to
complete.

Needs no lease, so a prompt costs etcd a few small reads and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from codomyrmex.concurrency.etcd.scan import names_under
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.keys import Layout, check_name
from codomyrmex.concurrency.settings import EtcdSettings

Kind = Literal["lock", "tree", "semaphore", "election", "group", "rate limiter", "pool", "dead letter queue"]

_SEGMENTS: dict[Kind, str] = {
    "lock": "lock",
    "tree": "path",
    "semaphore": "semaphore",
    "election": "election",
    "group": "group",
    "rate limiter": "rate",
    "pool": "pool",
    "dead letter queue": "dead",
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
    under = Layout(settings.namespace).below(_SEGMENTS[kind])
    found: list[str] = []
    transport = transport_for(settings.model_copy(update={"dial_timeout": timeout, "request_timeout": timeout}))
    try:
        async with asyncio.timeout(timeout):
            async for name in names_under(transport, under, prefix):
                if len(found) == limit:
                    break
                if kind == "rate limiter":  # each dimension is a queue: its name has the dimension behind a slash
                    name = name.rpartition("/")[0]
                if name.isprintable() and name not in found:
                    found.append(name)
    finally:
        await transport.close()
    return found
