"""The core of a session: one connection, one lease and one watch stream, shared by every primitive of a process.

A session decides until when its lease may be trusted, and tells its session members when trust ends. It knows nothing
of locks. The end of trust and the loss of the session are two events:

- Trust ends two thirds of a TTL after the last acknowledged keepalive was sent. From then on nothing held may be relied
  on, but the lease may still exist, and waiters keep their entries.
- The session is lost when the lease is known to be gone. A lost session stays lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.affinity import Home
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, SessionLost, fresh, text_of
from codomyrmex.concurrency.etcd.commit import Committer, Fence
from codomyrmex.concurrency.etcd.deletion import Remover
from codomyrmex.concurrency.etcd.keepalive import Keepalive
from codomyrmex.concurrency.etcd.max_hold import HoldLimits
from codomyrmex.concurrency.etcd.supervision import guarded, supervise
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Lease, Put, Target, Transport, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, WatchHub
from codomyrmex.concurrency.keys import Layout
from codomyrmex.concurrency.loss import Loss, SessionClosed
from codomyrmex.concurrency.session_members import SessionMember, SessionMembers
from codomyrmex.concurrency.settings import EMBEDDED, EtcdSettings

if TYPE_CHECKING:
    from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd


log = logging.getLogger("codomyrmex.concurrency")

_open_sessions: set[SessionCore] = set()  # with those whose loop was closed, which nothing can close any more
_ENDING = 1.0  # seconds for the tasks of the session to end when it is closed

M = TypeVar("M", bound=SessionMember)


class SessionCore:
    """The lease, its keepalive, its watch stream and its group commit, and the session members that depend on them.

    Layers above get it from ``session.ready`` or ``session.core_of``. Users see only ``Session``.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.layout = Layout(self.settings.namespace)
        self.home = Home()
        self.lost = Loss(self.home)
        self.host = socket.gethostname()
        self.members = SessionMembers(self._broken)
        self._made: dict[type[SessionMember], Any] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.transport: Transport
        self.hub: WatchHub
        self.committer: Committer
        self.remover: Remover
        self.ttl = 0
        self.is_open = False
        self._lease: Lease | None = None
        self._keepalive: Keepalive | None = None
        self._embedded: EmbeddedEtcd | None = None
        self._opening = asyncio.Lock()
        self._trust = asyncio.Event()

    @property
    def id(self) -> int:
        """The lease id; 0 before the session is open."""
        return self._lease.id if self._lease else 0

    @property
    def alive(self) -> bool:
        """True if the lease may be trusted right now."""
        return self.deadline() > 0

    def deadline(self) -> float:
        """Seconds for which the lease may still be trusted; 0 when it may not."""
        if self._keepalive is None or self.lost.is_set() or not self.home.in_process:
            return 0.0
        return max(0.0, self._keepalive.remaining())

    async def open(self) -> None:
        """Connect and take a lease; does nothing if the session is open. Raises ``SessionLost`` if it is over."""
        self.home.check("session")
        async with self._opening:
            if self.lost.is_set():
                raise SessionLost("this session is over; make a new one") from self.lost.reason
            if not self.is_open:
                try:
                    await self._start()
                except BaseException:
                    await self._release_resources()
                    raise

    async def close(self) -> None:
        """Release everything held at once, then revoke the lease. A second call does nothing."""
        if not self.home.in_process:  # a copy in a forked child, which has nothing to give back
            self.lost.tell(SessionClosed("the session was closed"))
            return
        if self.is_open:
            self.home.check("session")
        if self.lost.is_set() or not self.is_open:
            self.lost.tell(SessionClosed("the session was closed"))
            await self._release_resources()
            return
        reason = SessionClosed("the session was closed")
        self.members.tell(lambda member: member.session_closing(reason), self.id)
        try:
            async with asyncio.timeout(min(2.0, self.settings.request_timeout)):
                await self.committer.idle()
        except TimeoutError:
            pass  # the end of the lease deletes the keys
        if self._keepalive:
            self._keepalive.stop(revoke=True)
        self._end(reason)
        if self._keepalive:
            await asyncio.to_thread(self._keepalive.join)
        await self._release_resources()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "new"
        if self.lost.is_set():
            state = "closed" if isinstance(self.lost.reason, SessionClosed) else "lost"
        return f"<Session {self.id:016x} {state}>"

    def usable_here(self) -> bool:
        """True if the session is open and belongs to this process and the running event loop."""
        return self.is_open and self.home.is_here() and not self.lost.is_set()

    @property
    def is_over(self) -> bool:
        """True if the session was lost or closed, or its event loop was closed."""
        return self.lost.is_set() or (self.home.loop is not None and self.home.loop.is_closed())

    async def trusted(self) -> None:
        """Wait until the lease may be trusted. Raises ``SessionLost`` if the session is lost meanwhile."""
        while not self.alive:
            if self.lost.is_set():
                raise fresh(self.lost.reason or SessionLost("the session is over"))
            self._trust.clear()  # each acknowledged keepalive sets it
            await self._trust.wait()

    def notice_distrust(self) -> None:
        """Tell the members at once that the lease is not trusted, before the keepalive's callback runs."""
        self._lease_changed()

    # Session members and their work

    def member(self, kind: type[M]) -> M:
        """The session's one member of type ``kind``. The first call makes it, with the session as its argument.

        A layer above keeps its state for each session in such a member, so the session need not know that layer.
        """
        made: M | None = self._made.get(kind)
        if made is None:
            made = self._made[kind] = kind(self)  # type: ignore[call-arg]
            self.join(made)
        return made

    def join(self, member: SessionMember) -> None:
        """Tell ``member`` of the end of trust, the loss and the close of the session from now on."""
        self.members.add(member)

    def leave(self, member: SessionMember) -> None:
        """Tell ``member`` nothing more."""
        self.members.discard(member)

    def waits(self) -> list[tuple[str, float]]:
        """The waits of all members: the kind of each, and its beginning on ``clock``. Any thread may call this."""
        return self.members.waits()

    def holds(self) -> list[tuple[str, float]]:
        """The holds of all members: the kind of each, and its beginning on ``clock``. Any thread may call this."""
        return self.members.holds()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Cancel ``task`` when the session is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` in a task of the session. If ``work`` fails, the session is lost for that reason."""
        task = supervise(work, name, self._broken)
        self.keep(task)
        return task

    def guarded(self, callback: Callable[[], object], name: str) -> Callable[[], None]:
        """A function for the event loop that calls ``callback``. If that fails, the session is lost for that reason."""
        return guarded(callback, name, self._broken)

    # The lease

    async def delayed_lease(self, seconds: float) -> int:
        """The id of a delayed lease: it is renewed with the session's lease, and ends ``seconds`` after it."""
        assert self._keepalive
        ttl = math.ceil(self.ttl + seconds)
        async with self._opening:
            lease = self._keepalive.delayed_lease(ttl)
            if lease is None:
                asked_at = clock.now()
                lease = await self.transport.grant(ttl)
                # It must not end before the trust in the session does. The next keepalive makes sure of that.
                if clock.now() - asked_at > self.ttl / 3:
                    raise EtcdUnavailable("the delayed lease came too late to be relied upon", retryable=True)
                self._keepalive.renew_too(ttl, lease)
        return lease.id

    def hold_limits(self) -> HoldLimits:
        """The hold limits, which the keepalive's thread enforces, even if the event loop is blocked."""
        assert self._keepalive
        return self._keepalive.hold_limits

    # Opening

    async def _start(self) -> None:
        settings = self.settings
        if settings.endpoints == (EMBEDDED,):
            from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd

            self._embedded = EmbeddedEtcd()
            await self._embedded.start()
            settings = settings.model_copy(update={"endpoints": (self._embedded.endpoint,)})
        self.transport = transport_for(settings)
        self.home.settle()
        self.hub = WatchHub(self.transport, self._broken)
        await self.transport.connect(self.layout.leases)
        sent_at = clock.now()
        self._lease = await self.transport.grant(settings.session_ttl)
        self.ttl = self._lease.ttl
        fence = Fence(self.layout.lease(self.id), self._describe(), self.id)
        self.committer = Committer(self.transport, fence, settings.request_timeout, self._give_up, self._broken)
        self.remover = self.committer.remover
        self._keepalive = Keepalive(
            self.transport.lease_client(),
            self._lease,
            sent_at,
            asyncio.get_running_loop(),
            self._lease_changed,
            self._keepalive_failed,
            self._broken,
        )
        self._keepalive.start()
        self.transport.connect_all()
        await self._write_key(fence)
        self.hub.subscribe(WatchRequest(fence.key, deletes_only=True), self._key_notice)
        self.is_open = True
        _open_sessions.add(self)
        self._trust.set()

    async def _write_key(self, fence: Fence) -> None:
        put = Put(fence.key, fence.value, fence.lease)
        await self.transport.txn((Compare(fence.key, Target.VERSION, 0),), (put,))

    def _describe(self) -> bytes:
        return json.dumps({"host": self.host, "pid": os.getpid()}).encode()

    # Ends

    def _key_notice(self, notice: Notice) -> None:
        """End the session if its own key was deleted, because the key ends with the lease.

        A gap in the watch may hide the deletion; then the next keepalive tells.
        """
        if isinstance(notice, Changed):
            self._end(SessionLost("the session's lease is gone: it expired or was revoked"))

    def _lease_changed(self) -> None:
        """Tell the members if trust in the lease has ended, or end the session if the lease is gone."""
        if self._keepalive is None:
            return
        if self._keepalive.gone:
            self._end(SessionLost("the session's lease is gone: it expired or was revoked"))
        elif self._keepalive.remaining() > 0:
            self._trust.set()
        else:
            reason = SessionLost(
                f"no keepalive was answered for two thirds of the lease's {self.ttl} s; it can no longer be trusted"
            )
            self.members.tell(lambda member: member.untrusted(reason), self.id)

    def _keepalive_failed(self, endpoint: str) -> None:
        """Leave an endpoint that did not answer a keepalive.

        It hangs for the watches too, which would not notice for long.
        """
        if len(self.transport.endpoints) > 1 and not self.lost.is_set():
            self.transport.suspect(endpoint)
            self.hub.leave(endpoint)

    def _give_up(self, reason: ConcurrencyError) -> None:
        """Revoke the lease, because a transaction may be in flight that nothing else can undo or fence off."""
        if self._keepalive:
            self._keepalive.stop(revoke=True)
        self._end(SessionLost(f"the lease was given up, because a transaction's fate could not be settled: {reason}"))

    def _broken(self, name: str, error: BaseException) -> None:
        """End the session because its background work failed, without which it cannot keep its promises.

        The lease is not revoked but expires, so that holders, which are told now, can end before others begin.
        """
        if self.lost.is_set() and isinstance(self.lost.reason, SessionClosed):
            return
        log.error("%s of the session %016x failed", name, self.id, exc_info=error)
        self._end(SessionLost(f"{name} of this session failed: {type(error).__name__}: {text_of(error)}"))

    def _end(self, reason: SessionLost) -> None:
        """Make the session lost, once, and tell its members."""
        if self.lost.is_set():
            return
        self.lost.tell(reason)
        if not isinstance(reason, SessionClosed):
            log.warning(
                "the session %016x is lost: %s", self.id, reason, extra={"codomyrmex_session": f"{self.id:016x}"}
            )
            if telemetry.observers:
                telemetry.tell("session_lost", self.id)
        self._trust.set()
        self.committer.abandon(reason)
        self.members.tell(lambda member: member.session_lost(reason), self.id)
        self.members.stop_ticks()
        if self._keepalive:
            self._keepalive.stop(revoke=False)

    async def _release_resources(self) -> None:
        _open_sessions.discard(self)
        self.members.stop_ticks()
        if self._keepalive:
            self._keepalive.stop(revoke=not self.is_open)
        if self._tasks:
            await self._end_tasks()
        if self.is_open:
            self.is_open = False
            await self.committer.close()
        if hasattr(self, "hub"):
            await self.hub.close()
        if hasattr(self, "transport"):
            await self.transport.close()
        if self._embedded:
            await self._embedded.stop()

    async def _end_tasks(self) -> None:
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks and (await asyncio.wait(tasks, timeout=_ENDING))[1]:
            log.error("work on the session %016x goes on after its end, for it ignores that it was cancelled", self.id)


def open_sessions() -> list[SessionCore]:
    """The open sessions of this process, for observers. Any thread may call it."""
    return [session for session in list(_open_sessions) if not session.is_over]
