"""The time until which a lease may be trusted, and the time of the next keepalive: pure, the time is passed in.

Trust is counted from the moment the last acknowledged keepalive was *sent* and ends after two thirds of the TTL: one
third before etcd can expire the lease, as in Kubernetes' leader election. All times are seconds on ``clock.now``.
"""

from __future__ import annotations

TICK = 0.25  # seconds; the longest until a suspend, a closed loop or a stop is noticed


class LeaseTrust:
    """The deadline of a lease and the time of its next renewal, moved by acknowledged keepalives."""

    def __init__(self, ttl: float, sent_at: float, endpoints: int = 1) -> None:
        self._tries = max(2, min(endpoints, 4))
        self.deadline = 0.0
        self.next_renewal = 0.0
        self._ttl = ttl
        self._trusted = True  # as it was told last
        self.renewed(ttl, sent_at, sent_at)

    @property
    def tick(self) -> float:
        """The seconds between two looks at the time."""
        return min(TICK, self._ttl / 12)

    @property
    def call_limit(self) -> float:
        """The most seconds that a call of the keepalive may take."""
        return self._ttl / 6

    def remaining(self, now: float) -> float:
        """The seconds for which the lease may still be trusted; 0 or less when it may not."""
        return self.deadline - now

    def is_due(self, now: float) -> bool:
        """True if the lease is to be renewed now."""
        return now >= self.next_renewal

    def renewal_limit(self, now: float) -> float:
        """The most seconds that a renewal may take that is sent ``now``.

        Trust lasts for a third of the TTL after a renewal is due. In that time each endpoint is tried, up to four: one
        may be lost, and another may be a follower that does not reach the leader. The end of trust must not be noticed
        late.
        """
        left = self.remaining(now)
        return min(self._ttl / 3 / self._tries, left) if left > 0.01 else self.call_limit

    def renewed(self, ttl: float, sent_at: float, now: float) -> None:
        """etcd acknowledged a keepalive that was sent at ``sent_at``, with ``ttl`` seconds from then."""
        self.deadline = sent_at + ttl * 2 / 3
        self.next_renewal = sent_at + ttl / 3
        self._trusted = now < self.deadline

    def not_renewed(self, now: float) -> None:
        """A keepalive was not answered: the next one is sent soon."""
        self.next_renewal = now + min(TICK, self._ttl / 24)

    def changes(self, now: float) -> bool:
        """True if trust has ended or come back since this was last asked, or since the last renewal."""
        trusted = now < self.deadline
        if trusted == self._trusted:
            return False
        self._trusted = trusted
        return True
