"""Keeping a lease alive from a thread of its own, and knowing until when it may be trusted.

A thread, because a blocked event loop must not cost its process the lease. Trust is counted from the moment the
last acknowledged keepalive was *sent*, on a clock that runs during suspend, and ends after two thirds of the TTL:
one third before etcd can expire the lease, as in Kubernetes' leader election.
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
from codomyrmex.concurrency.etcd.max_hold import HoldLimits
from codomyrmex.concurrency.etcd.supervision import Broken
from codomyrmex.concurrency.etcd.transports.failures import LEASE_NOT_FOUND
from codomyrmex.concurrency.etcd.transports.protocol import Lease, LeaseClient

_TICK = 0.25  # how soon a suspend, a closed loop or a stop is noticed
_EXIT_LIMIT = 1.0


class Keepalive(threading.Thread):
    """Renews ``lease`` until stopped, the lease is gone, or the event loop has closed; with it, leases that outlive it.

    ``changed`` is called in the event loop whenever trust is lost or renewed, or the lease gone; ``failed``, with
    the endpoint, after each keepalive that was not answered; ``broken`` if the thread ends of anything unexpected.
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
        self._deadline = sent_at + lease.ttl * 2 / 3
        self._next = sent_at + lease.ttl / 3
        self._trusted = True
        self._ending = threading.Event()
        self._revoke = False
        self._pid = os.getpid()
        self.gone = False
        _running.add(self)

    def remaining(self) -> float:
        """Seconds for which the lease may still be trusted; 0 or less when it may not."""
        return -1.0 if self.gone else self._deadline - clock.now()

    def longer(self, ttl: int) -> Lease | None:
        """The lease of ``ttl`` seconds that is renewed together with the session's, if there is one."""
        return self._longer.get(ttl)

    def renew_too(self, ttl: int, lease: Lease) -> None:
        """From here on ``lease`` is renewed too, and outlives the session's by what its TTL is longer."""
        self._longer[ttl] = lease

    def stop(self, *, revoke: bool) -> None:
        """End the thread soon; with ``revoke`` it gives the lease back first, as well as can be."""
        self._revoke = self._revoke or revoke
        self._ending.set()

    def run(self) -> None:
        try:
            while not self._ending.wait(min(_TICK, self._lease.ttl / 12)):
                if self._loop.is_closed():
                    self._revoke = True
                    break
                self._check_trust()
                self.hold_limits.enforce(self._lease.ttl / 6)
                if clock.now() >= self._next and not self._renew():
                    return
            if self._revoke:
                self._give_back()
        except Exception as error:
            self._tell(partial(self._broken, "the keepalive", error))
        finally:
            self._client.close()
            _running.discard(self)

    def _check_trust(self) -> None:
        trusted = clock.now() < self._deadline
        if trusted != self._trusted:
            self._trusted = trusted
            self._tell(self._changed)

    def _renew(self) -> bool:
        sent_at = clock.now()
        left = self._deadline - sent_at
        limit = self._lease.ttl / 6
        endpoint = self._client.endpoint
        try:
            # Never so long that the end of trust would be noticed late.
            ttl = self._client.renew(self._lease.id, min(limit, left) if left > 0.01 else limit)
            if ttl > 0:
                self._renew_longer(limit)
        except EtcdError as error:
            if LEASE_NOT_FOUND in str(error):
                return self._end()
            self._next = clock.now() + min(_TICK, self._lease.ttl / 24)
            self._check_trust()
            self._tell(lambda: self._failed(endpoint))
            return True
        if ttl <= 0:
            return self._end()
        self._deadline = sent_at + ttl * 2 / 3
        self._next = sent_at + ttl / 3
        self._trusted = clock.now() < self._deadline
        self._tell(self._changed)  # also if it never ended here: the event loop may have seen it end
        return True

    def _renew_longer(self, limit: float) -> None:
        """Trust in the session is trust in these too, so all are renewed before it is extended."""
        for asked, lease in self._longer.copy().items():
            try:
                gone = self._client.renew(lease.id, limit) <= 0
            except EtcdError as error:
                if LEASE_NOT_FOUND not in str(error):
                    raise
                gone = True
            if gone:  # somebody revoked it; those who had a key on it notice by themselves
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
    """A process that exits gives its leases back at once, and never hangs over it."""
    mine = [thread for thread in list(_running) if thread.is_alive()]
    for thread in mine:
        thread.stop(revoke=True)
    for thread in mine:
        thread.join(2 * _EXIT_LIMIT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
