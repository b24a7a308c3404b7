"""Notices of changes in etcd, and readings that are made anew after each change, for onlookers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from codomyrmex.concurrency.errors import SessionLost, fresh
from codomyrmex.concurrency.etcd.transports.protocol import WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session_core import SessionCore

_PAUSE = 0.25  # seconds
_PAUSE_FACTOR = 4  # the pause after a reading, as a multiple of the time that it took

T = TypeVar("T")


async def notices(session: SessionCore, request: WatchRequest) -> AsyncGenerator[Changed | Started, None]:
    """The notices of a watch. Raises the reason once the session is lost or etcd refuses the watch."""
    inbox: asyncio.Queue[Notice | None] = asyncio.Queue()
    watch = session.hub.subscribe(request, inbox.put_nowait)
    loss = asyncio.create_task(session.lost.wait())
    loss.add_done_callback(lambda _: inbox.put_nowait(None))
    try:
        while True:
            notice = await inbox.get()
            if notice is None:
                raise fresh(session.lost.reason or SessionLost("the session is over"))
            if isinstance(notice, Refused):
                raise notice.error
            yield notice
    finally:
        watch.cancel()
        loss.cancel()


async def snapshots(
    session: SessionCore, prefix: bytes, read: Callable[[], Awaitable[T]], end: bytes = b""
) -> AsyncGenerator[T, None]:
    """The result of ``read``: first when the watch under ``prefix``, or up to ``end``, has started, then after each
    change there.

    A reading is followed by a pause of 0.25 s, or of four times as long as it took if that is longer.
    """
    changed = asyncio.Event()
    following = asyncio.create_task(_set_on_change(session, prefix, end, changed))
    following.add_done_callback(lambda _: changed.set())
    try:
        while True:
            await changed.wait()
            changed.clear()
            if following.done():
                following.result()
            began = time.monotonic()
            yield await read()
            await asyncio.sleep(max(_PAUSE, _PAUSE_FACTOR * (time.monotonic() - began)))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _set_on_change(session: SessionCore, prefix: bytes, end: bytes, changed: asyncio.Event) -> None:
    async for _ in notices(session, WatchRequest(prefix, end or prefix_end(prefix))):
        changed.set()
