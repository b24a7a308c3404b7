"""A session: one connection, one lease, one watch stream, shared by every primitive of a process.

It decides until when the lease may be trusted and tells its members when that ends; it knows nothing of locks. Two
things are told apart. Trust ends two thirds of a TTL after the last acknowledged keepalive was sent: from then on
nothing that is held may be relied upon, though the lease may live on and waiters keep their place. The session is
lost when the lease is known to be gone, and a lost session stays lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
import weakref
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.affinity import Home, running_loop
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, SessionLost, text_of
from codomyrmex.concurrency.etcd.commit import Committer, Fence
from codomyrmex.concurrency.etcd.deletion import Remover
from codomyrmex.concurrency.etcd.keepalive import Keepalive
from codomyrmex.concurrency.etcd.max_hold import HoldLimits
from codomyrmex.concurrency.etcd.supervision import supervise
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Lease, Put, Target, Transport, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, WatchHub
from codomyrmex.concurrency.keys import Layout
from codomyrmex.concurrency.loss import Loss, SessionClosed
from codomyrmex.concurrency.session_members import SessionMember, SessionMembers
from codomyrmex.concurrency.settings import EMBEDDED, EtcdOptions, EtcdSettings

if TYPE_CHECKING:
    from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd


log = logging.getLogger("codomyrmex.concurrency")

_open_sessions: set[Session] = set()  # also those whose loop was closed under them: nobody can close what they have
_ENDING = 1.0  # seconds for what works on the session to end when it is closed

M = TypeVar("M", bound=SessionMember)


class Session(AsyncOnly):
    """One lease in etcd and what hangs on it. Use ``async with Session(...) as session``, or ``open`` and ``close``.

    Args:
        settings: where etcd is; read from the environment when left out.
        overrides: single fields of ``EtcdSettings``, such as ``endpoints=`` or ``session_ttl=`` (seconds).
            ``endpoints="embedded"`` starts a real etcd for this session alone.

    Raises on opening: ``EtcdUnavailable`` (within ``dial_timeout``), ``EtcdAuthError``, ``EtcdQuotaExceeded``.
    """

    def __init__(self, settings: EtcdSettings | None = None, **overrides: Unpack[EtcdOptions]) -> None:
        self.settings = make_settings(settings, overrides)
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
        """Whether the lease may be trusted right now."""
        return self.deadline() > 0

    def deadline(self) -> float:
        """Seconds for which the lease may still be trusted; 0 when it may not."""
        if self._keepalive is None or self.lost.is_set() or not self.home.in_process:
            return 0.0
        return max(0.0, self._keepalive.remaining())

    async def open(self) -> Session:
        """Connect and take a lease; does nothing if that is done already."""
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
        return self

    def usable_here(self) -> bool:
        """Whether it is open, and in the process and the event loop that it belongs to."""
        return self.is_open and self.home.is_here() and not self.lost.is_set()

    def member(self, kind: type[M]) -> M:
        """The one session member of ``kind``, which is made of the session, and joins it, at the first call.

        A layer above keeps in it the state that it has for each session; so the session need not know that layer.
        """
        made: M | None = self._made.get(kind)
        if made is None:
            made = self._made[kind] = kind(self)  # type: ignore[call-arg]
            self.join(made)
        return made

    def join(self, member: SessionMember) -> None:
        """Tell ``member`` from now on what becomes of the session."""
        self.members.add(member)

    def leave(self, member: SessionMember) -> None:
        """Tell ``member`` no more."""
        self.members.discard(member)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Own a task that works on the session: it is cancelled when the session is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Begin work in the background that the session owns: if it fails, the session ends with the reason."""
        task = supervise(work, name, self._broken)
        self.keep(task)
        return task

    async def delayed_lease(self, seconds: float) -> int:
        """The id of a lease that is renewed with the session's and outlives it by ``seconds``."""
        assert self._keepalive
        ttl = math.ceil(self.ttl + seconds)
        async with self._opening:
            lease = self._keepalive.longer(ttl)
            if lease is None:
                asked_at = clock.now()
                lease = await self.transport.grant(ttl)
                # It must outlast the present trust in the session; from the next keepalive on it does.
                if clock.now() - asked_at > self.ttl / 3:
                    raise EtcdUnavailable("the longer lease came too late to be relied upon", retryable=True)
                self._keepalive.renew_too(ttl, lease)
        return lease.id

    def hold_limits(self) -> HoldLimits:
        """What takes entries away in time, also when the event loop is blocked."""
        assert self._keepalive
        return self._keepalive.hold_limits

    async def trusted(self) -> None:
        """Wait until the lease may be trusted; raises ``SessionLost`` when it is gone instead."""
        while not self.alive:
            if self.lost.is_set():
                raise self.lost.reason or SessionLost("the session is over")
            self._trust.clear()  # each acknowledged keepalive sets it
            await self._trust.wait()

    async def close(self) -> None:
        """Release everything held at once, then give the lease back. Calling it again does nothing."""
        if not self.home.in_process:  # a copy in a forked child, of which nothing is to be given back
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
            pass  # the lease's end takes the keys along
        if self._keepalive:
            self._keepalive.stop(revoke=True)
        self._end(reason)
        if self._keepalive:
            await asyncio.to_thread(self._keepalive.join)
        await self._release_resources()

    async def __aenter__(self) -> Session:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "new"
        if self.lost.is_set():
            state = "closed" if isinstance(self.lost.reason, SessionClosed) else "lost"
        return f"<Session {self.id:016x} {state}>"

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

    def _key_notice(self, notice: Notice) -> None:
        """The session's own key is watched: its end is the lease's end, known at once. A gap may hide it; then the
        next keepalive tells."""
        if isinstance(notice, Changed):
            self._end(SessionLost("the session's lease is gone: it expired or was revoked"))

    def _lease_changed(self) -> None:
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

    def notice_distrust(self) -> None:
        """Tell the members that the lease is not trusted, before the event loop comes to what the keepalive told."""
        self._lease_changed()

    def _keepalive_failed(self, endpoint: str) -> None:
        """What hangs for the keepalive hangs for the watches too, and they would not notice for long."""
        if len(self.transport.endpoints) > 1 and not self.lost.is_set():
            self.transport.suspect(endpoint)
            self.hub.leave(endpoint)

    def _give_up(self, reason: ConcurrencyError) -> None:
        """What may be in flight cannot be fenced off: only the end of the lease takes it along."""
        if self._keepalive:
            self._keepalive.stop(revoke=True)
        self._end(SessionLost(f"the lease was given up, because a transaction's fate could not be settled: {reason}"))

    def _broken(self, name: str, error: BaseException) -> None:
        """Something in the background has ended although nobody ended it: without it nothing that the session promises
        holds. The lease is left to expire, so that those who are told now can come to an end before others begin."""
        if self.lost.is_set() and isinstance(self.lost.reason, SessionClosed):
            return
        log.error("%s of the session %016x failed", name, self.id, exc_info=error)
        self._end(SessionLost(f"{name} of this session failed: {type(error).__name__}: {text_of(error)}"))

    def _end(self, reason: SessionLost) -> None:
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

    @property
    def is_over(self) -> bool:
        """True if it was lost or closed, or its event loop was."""
        return self.lost.is_set() or (self.home.loop is not None and self.home.loop.is_closed())

    def waits(self) -> list[tuple[str, float]]:
        """The kind of each thing that members wait for, and the time on ``clock`` since when. Any thread may ask."""
        return self.members.waits()

    def holds(self) -> list[tuple[str, float]]:
        """The kind of each thing that members hold, and the time on ``clock`` since when. Any thread may ask."""
        return self.members.holds()

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


def make_settings(settings: EtcdSettings | None, overrides: Mapping[str, Any]) -> EtcdSettings:
    """The settings given, else the environment's, with overrides; raises ``ValueError`` that says what is wrong."""
    if not (settings is None or isinstance(settings, EtcdSettings)):
        raise TypeError(f"settings must be EtcdSettings, not {settings!r}")
    if settings is None:
        return EtcdSettings(**overrides)
    return EtcdSettings(**{**settings.model_dump(), **overrides}) if overrides else settings


_defaults: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Session] = weakref.WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _defaults.clear())


def open_sessions() -> list[Session]:
    """The sessions of this process that are open, for those who look on. Any thread may ask."""
    return [session for session in list(_open_sessions) if not session.is_over]


def default_session() -> Session:
    """The session of the running event loop, made from the environment at first use and anew after a loss.

    It never starts an etcd by itself: a member of a fleet that cannot reach its cluster must fail, not lock alone.
    """
    loop = running_loop()
    session = _defaults.get(loop)
    if session is None or session.lost.is_set():
        session = _defaults[loop] = Session()
    return session


async def ready(session: Session | None) -> Session:
    """``session``, or the default one, opened and usable; raises ``SessionLost`` if a given one is over."""
    chosen = session or default_session()
    if not chosen.usable_here():
        if session is not None and session.lost.is_set():
            raise SessionLost("the session given is over; make a new one") from session.lost.reason
        await chosen.open()
    return chosen
