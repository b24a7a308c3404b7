"""Keeps a lease alive from a thread of its own, so that a blocked event loop does not lose the lease.

``lease_trust.py`` decides until when the lease may be trusted. Its clock runs while the machine is suspended.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.lease_trust import LeaseTrust
from codomyrmex.concurrency.etcd.max_hold import HoldLimits
from codomyrmex.concurrency.etcd.supervision import Broken
from codomyrmex.concurrency.etcd.transports.failures import LEASE_NOT_FOUND
from codomyrmex.concurrency.etcd.transports.protocol import Lease, LeaseClient

_EXIT_LIMIT = 1.0  # seconds for revoking a lease at exit


class Keepalive(threading.Thread):
    """The thread that renews the lease and the delayed leases of a session, and enforces the session's hold limits.

    It ends when it is stopped, when the lease is gone, or when the event loop has closed.

    ``changed`` is called in the event loop whenever trust ends or is renewed, and when the lease is gone. ``failed`` is
    called with the endpoint after each keepalive that was not answered. ``broken`` is called if the thread ends with an
    unexpected exception.
    """

    def __init__(
        self,
        client: LeaseClient,
        lease: Lease,
        sent_at: float,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], None],
        failed: Callable[[str], None],
        broken: Broken,
    ) -> None:
        super().__init__(name=f"etcd-keepalive-{lease.id:x}", daemon=True)
        self._client = client
        self._lease = lease
        self._delayed: dict[int, Lease] = {}
        self.hold_limits = HoldLimits(client)
        self._loop = loop
        self._changed = changed
        self._failed = failed
        self._broken = broken
        self._trust = LeaseTrust(lease.ttl, sent_at, client.endpoint_count)
        self._ending = threading.Event()
        self._revoke = False
        self._pid = os.getpid()
        self.gone = False
        _running.add(self)

    def remaining(self) -> float:
        """The seconds for which the lease may still be trusted; 0 or less when it may not."""
        return -1.0 if self.gone else self._trust.deadline - clock.now()

    def delayed_lease(self, ttl: int) -> Lease | None:
        """The delayed lease of ``ttl`` seconds that is renewed with the session's lease, or None."""
        return self._delayed.get(ttl)

    def renew_too(self, ttl: int, lease: Lease) -> None:
        """Renew the delayed ``lease`` too from now on. It ends after the session's by the difference of their TTLs."""
        self._delayed[ttl] = lease

    def stop(self, *, revoke: bool) -> None:
        """End the thread soon. With ``revoke``, it first revokes the lease, if etcd answers."""
        self._revoke = self._revoke or revoke
        self._ending.set()

    def run(self) -> None:
        """Renew and check, until the thread is stopped. The thread calls this."""
        try:
            self._client.connect_all()
            while not self._ending.wait(self._trust.tick):
                if self._loop.is_closed():
                    self._revoke = True
                    break
                self._check_trust()
                self.hold_limits.enforce(self._trust.call_limit)
                if self._trust.is_due(clock.now()) and not self._renew():
                    return
            if self._revoke:
                self._give_back()
        except Exception as error:
            self._tell(partial(self._broken, "the keepalive", error))
        finally:
            self._client.close()
            _running.discard(self)

    def _check_trust(self) -> None:
        if self._trust.changes(clock.now()):
            self._tell(self._changed)

    def _renew(self) -> bool:
        """Send a keepalive. Returns False if the lease is gone."""
        sent_at = clock.now()
        endpoint = self._client.endpoint
        try:
            ttl = self._client.renew(self._lease.id, self._trust.renewal_limit(sent_at))
            if ttl > 0:
                self._renew_delayed(self._trust.call_limit)
        except EtcdError as error:
            if LEASE_NOT_FOUND in str(error):
                return self._end()
            self._trust.not_renewed(clock.now())
            self._check_trust()
            self._tell(lambda: self._failed(endpoint))
            return True
        if ttl <= 0:
            return self._end()
        self._trust.renewed(ttl, sent_at, clock.now())
        self._client.connect_all()
        self._tell(self._changed)  # also if trust never ended here: the event loop may have seen it end
        return True

    def _renew_delayed(self, limit: float) -> None:
        """Renew the delayed leases. Trust in the session includes them, so trust is extended only afterwards."""
        for asked, lease in self._delayed.copy().items():
            try:
                gone = self._client.renew(lease.id, limit) <= 0
            except EtcdError as error:
                if LEASE_NOT_FOUND not in str(error):
                    raise
                gone = True
            if gone:  # another client revoked it; the entries with a key on it notice by themselves
                self._delayed.pop(asked, None)

    def _end(self) -> bool:
        self.gone = True
        self._tell(self._changed)
        return False

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop closed just now; the next round of ``run`` notices
            return

    def _give_back(self) -> None:
        if os.getpid() != self._pid:
            return
        for lease in (self._lease, *self._delayed.values()):
            try:
                self._client.revoke(lease.id, _EXIT_LIMIT)
            except EtcdError:
                return  # it expires by itself


_running: weakref.WeakSet[Keepalive] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Revoke the leases when the process exits, within a time limit."""
    mine = [thread for thread in list(_running) if thread.is_alive()]
    for thread in mine:
        thread.stop(revoke=True)
    for thread in mine:
        thread.join(2 * _EXIT_LIMIT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
