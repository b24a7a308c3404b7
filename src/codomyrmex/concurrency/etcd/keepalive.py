"""Keeps a lease alive from a thread of its own: a blocked event loop must not cost its process the lease.

``lease_trust.py`` decides until when the lease may be trusted. Its clock runs during suspend.
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

_EXIT_LIMIT = 1.0  # seconds to revoke a lease at the end


class Keepalive(threading.Thread):
    """Renews ``lease`` and the longer leases of its session until it is stopped, the lease is gone, or the event loop
    has closed. It also enforces the session's hold limits.

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
        self._longer: dict[int, Lease] = {}
        self.hold_limits = HoldLimits(client)
        self._loop = loop
        self._changed = changed
        self._failed = failed
        self._broken = broken
        self._trust = LeaseTrust(lease.ttl, sent_at)
        self._ending = threading.Event()
        self._revoke = False
        self._pid = os.getpid()
        self.gone = False
        _running.add(self)

    def remaining(self) -> float:
        """The seconds for which the lease may still be trusted; 0 or less when it may not."""
        return -1.0 if self.gone else self._trust.deadline - clock.now()

    def longer(self, ttl: int) -> Lease | None:
        """The lease of ``ttl`` seconds that is renewed together with the session's, if there is one."""
        return self._longer.get(ttl)

    def renew_too(self, ttl: int, lease: Lease) -> None:
        """Renew ``lease`` too from now on. It lasts longer than the session's by the difference of their TTLs."""
        self._longer[ttl] = lease

    def stop(self, *, revoke: bool) -> None:
        """End the thread soon. With ``revoke`` it first gives the lease back, if etcd answers."""
        self._revoke = self._revoke or revoke
        self._ending.set()

    def run(self) -> None:
        """The thread's work."""
        try:
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
        """Send a keepalive; false if the lease is gone."""
        sent_at = clock.now()
        endpoint = self._client.endpoint
        try:
            ttl = self._client.renew(self._lease.id, self._trust.renewal_limit(sent_at))
            if ttl > 0:
                self._renew_longer(self._trust.call_limit)
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
        self._tell(self._changed)  # also if trust never ended here: the event loop may have seen it end
        return True

    def _renew_longer(self, limit: float) -> None:
        """Renew the longer leases. Trust in the session is trust in these too, so it is extended only afterwards."""
        for asked, lease in self._longer.copy().items():
            try:
                gone = self._client.renew(lease.id, limit) <= 0
            except EtcdError as error:
                if LEASE_NOT_FOUND not in str(error):
                    raise
                gone = True
            if gone:  # another client revoked it; the entries with a key on it notice by themselves
                self._longer.pop(asked, None)

    def _end(self) -> bool:
        self.gone = True
        self._tell(self._changed)
        return False

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop closed just now; the next turn notices
            return

    def _give_back(self) -> None:
        if os.getpid() != self._pid:
            return
        for lease in (self._lease, *self._longer.values()):
            try:
                self._client.revoke(lease.id, _EXIT_LIMIT)
            except EtcdError:
                return  # it expires by itself


_running: weakref.WeakSet[Keepalive] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Give the leases back when the process exits, within a time limit."""
    mine = [thread for thread in list(_running) if thread.is_alive()]
    for thread in mine:
        thread.stop(revoke=True)
    for thread in mine:
        thread.join(2 * _EXIT_LIMIT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
