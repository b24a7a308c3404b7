"""The public session: all that users see of the lease that their locks, permits and workers depend on."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Unpack

from codomyrmex.concurrency.affinity import running_loop
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.errors import SessionLost
from codomyrmex.concurrency.loss import Loss
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.settings import EtcdOptions, EtcdSettings


class Session(AsyncOnly):
    """One lease in etcd. Use it as ``async with Session(...) as session``, or call ``open`` and ``close``.

    Args:
        settings: where etcd is; read from the environment when left out.
        overrides: single fields of ``EtcdSettings``, such as ``endpoints=`` or ``session_ttl=`` (seconds).
            ``endpoints="embedded"`` starts a real etcd for this session alone.

    Raises on opening: ``EtcdUnavailable`` (within ``dial_timeout``), ``EtcdAuthError``, ``EtcdQuotaExceeded``.
    """

    def __init__(self, settings: EtcdSettings | None = None, **overrides: Unpack[EtcdOptions]) -> None:
        self._core = SessionCore(make_settings(settings, overrides))

    @property
    def settings(self) -> EtcdSettings:
        """The settings that the session was made with."""
        return self._core.settings

    @property
    def id(self) -> int:
        """The lease id; 0 before the session is open."""
        return self._core.id

    @property
    def alive(self) -> bool:
        """True if the lease may be trusted right now. False may be temporary; ``lost`` tells the end."""
        return self._core.alive

    @property
    def lost(self) -> Loss:
        """An event that is set when the session is lost or closed; its ``reason`` is the error that says why."""
        return self._core.lost

    def deadline(self) -> float:
        """The seconds for which the lease may still be trusted, a duration; 0 when it may not be trusted."""
        return self._core.deadline()

    async def open(self) -> Session:
        """Connect and take a lease; does nothing if the session is open. Raises ``SessionLost`` if it is over."""
        await self._core.open()
        return self

    async def close(self) -> None:
        """Release everything held at once, then revoke the lease. A second call does nothing."""
        await self._core.close()

    async def __aenter__(self) -> Session:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._core)


def make_settings(settings: EtcdSettings | None, overrides: Mapping[str, Any]) -> EtcdSettings:
    """The settings given, else the environment's, with overrides; raises ``ValueError`` that names the mistake."""
    if not (settings is None or isinstance(settings, EtcdSettings)):
        raise TypeError(f"settings must be EtcdSettings, not {settings!r}")
    if settings is None:
        return EtcdSettings(**overrides)
    return EtcdSettings(**{**settings.model_dump(), **overrides}) if overrides else settings


_defaults: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Session] = weakref.WeakKeyDictionary()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _defaults.clear())


def default_session() -> Session:
    """The session of the running event loop, made from the environment at first use and anew after a loss.

    It never starts an etcd by itself: a process of a fleet that cannot reach its cluster must fail, not lock alone.
    """
    loop = running_loop()
    session = _defaults.get(loop)
    if session is None or session.lost.is_set():
        session = _defaults[loop] = Session()
    return session


async def ready(session: Session | None) -> SessionCore:
    """The core of ``session``, or of the default one, opened and usable.

    Raises ``SessionLost`` if a given session is over.
    """
    core = core_of(session or default_session())
    if not core.usable_here():
        if session is not None and core.lost.is_set():
            raise SessionLost("the session given is over; make a new one") from core.lost.reason
        await core.open()
    return core


def core_of(session: Session) -> SessionCore:
    """The machinery behind a session, for the library's own layers."""
    return session._core
