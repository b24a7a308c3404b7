"""Pauses of a rate limiter: keys on leases, which close it for the whole fleet while one of them exists."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, fresh
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get, GetResult, Op, Put, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.records import PauseRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.lease_end import revoke

_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between readings
_SAME = 1.0  # seconds, at most, by which the ends of two pauses differ that are written once


class Pauses:
    """Follows the pauses of one limiter. ``changed`` is called when they may have begun or ended, and ``refused`` when
    etcd does not let this process follow them."""

    def __init__(
        self,
        session: SessionCore,
        name: str,
        changed: Callable[[], None],
        refused: Callable[[ConcurrencyError], None],
    ) -> None:
        self._session = session
        self._name = name
        self._prefix = session.layout.pauses(name)
        self._changed = changed
        self._refused = refused
        self._keys: dict[bytes, int] = {}  # of each pause, its revision
        self._gone: dict[bytes, int] = {}  # deletions that the reading under way may not show yet
        self._own_until = 0.0  # until when this process pauses by itself, whatever etcd says
        self._own_key = b""  # the pause that it has written last
        self._written_until = 0.0  # the time that this pause lasts at least
        self._known = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.failure: ConcurrencyError | None = None
        self._watch = session.hub.subscribe(WatchRequest(self._prefix, prefix_end(self._prefix)), self._notice)

    def __bool__(self) -> bool:
        return bool(self._keys) or clock.now() < self._own_until

    async def begin(self, seconds: float, agent: str) -> None:
        """Pause this process for ``seconds`` at once, then the fleet unless it has asked for about as long already."""
        until = clock.now() + seconds
        if until > self._own_until:
            self._own_until = until
            over = self._session.guarded(self._changed, "the end of a rate limiter's pause")
            asyncio.get_running_loop().call_later(seconds, over)
            self._changed()
        before = self._written_until
        if until <= before + min(_SAME, seconds / 10):
            return
        self._written_until = until
        try:
            self._own_key = await pause(self._session, self._name, seconds, agent)
        except BaseException:
            self._written_until = before
            raise
        if telemetry.observers:
            telemetry.tell("rate_paused", self._name, seconds)

    async def end_all(self) -> bool:
        """End every pause, for everybody; False if there was none."""
        was_own = clock.now() < self._own_until
        self._forget_own()
        return await resume(self._session, self._name) or was_own

    def _forget_own(self) -> None:
        self._own_until = self._written_until = 0.0
        self._changed()

    async def known(self) -> None:
        """Wait until the pauses that there are have been read."""
        await self._known.wait()
        if self.failure:
            raise fresh(self.failure)

    def end(self, reason: ConcurrencyError) -> None:
        """Follow them no more, for ``reason``."""
        self.failure = self.failure or reason
        self._known.set()
        self._watch.cancel()
        if self._reading:
            self._reading.cancel()

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            for event in notice.events:
                if event.deleted:
                    self._keys.pop(event.kv.key, None)
                    if self._reading:
                        self._gone[event.kv.key] = event.kv.mod_revision
                    if event.kv.key == self._own_key:
                        self._own_until = self._written_until = 0.0
                elif event.kv.lease:  # without one it would never end
                    self._keys[event.kv.key] = event.kv.mod_revision
            self._changed()
        elif isinstance(notice, Started):
            if self._reading:
                self._reading.cancel()
            self._reading = self._session.start(self._read(), "the reading of a rate limiter's pauses")
        else:
            self._refused(notice.error)

    async def _read(self) -> None:
        """Read the pauses, since some may have begun or ended before the watch did."""
        pause = _PAUSE
        while True:
            try:
                found = await self._session.transport.get(Get(self._prefix, prefix_end(self._prefix)))
                break
            except EtcdError:
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
        newer = {key: revision for key, revision in self._keys.items() if revision > found.revision}
        read = {kv.key: kv.mod_revision for kv in found.kvs if kv.lease}
        self._keys = {**{key: at for key, at in read.items() if self._gone.get(key, 0) < at}, **newer}
        self._gone.clear()
        self._reading = None
        self._known.set()
        self._changed()


async def pause(session: SessionCore, name: str, seconds: float, agent: str = "") -> bytes:
    """Close a limiter for ``seconds``, for everybody, and return the key of the pause. etcd ends it, some two seconds
    after it began at the earliest."""
    lease = await session.transport.grant(math.ceil(seconds))
    key = session.layout.pause(name, lease.id)
    record = PauseRecord(session.host, os.getpid(), seconds, agent)
    try:
        await session.committer.commit(Request([key], [Put(key, record.encode(), lease.id)], again=(), alone=True))
    except BaseException:
        revoke(session, lease.id)
        raise
    return key


async def resume(session: SessionCore, name: str) -> bool:
    """End every pause of a limiter; False if there was none."""
    prefix = session.layout.pauses(name)
    end = prefix_end(prefix)
    ops: list[Op] = [Get(prefix, end), Delete(prefix, end)]
    reply = await session.committer.commit(Request([prefix], ops, again=(), alone=True))
    found = next(result for result in reply.results if isinstance(result, GetResult))
    return bool(found.kvs)
