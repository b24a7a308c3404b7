"""Notices that etcd has gone back in time: after a snapshot was restored without raising its revision, revisions, and
with them fencing tokens, would be given out a second time.

Transactions are linearizable: one that is sent after revision n was seen is answered at n or later. What a process has
seen is remembered for as long as it lives, for each cluster and namespace that it used, so a new session finds out too.
"""

from __future__ import annotations

from codomyrmex.concurrency.errors import EtcdRegressed

_highest: dict[tuple[str, ...], int] = {}


class Watermark:
    """The highest revision seen at these endpoints."""

    def __init__(self, endpoints: tuple[str, ...], namespace: str) -> None:
        self._key = (*endpoints, namespace)

    @property
    def revision(self) -> int:
        return _highest.get(self._key, 0)

    def seen(self, revision: int, floor: int) -> None:
        """A transaction sent when ``floor`` was the highest was answered at ``revision``; raises ``EtcdRegressed``."""
        if revision < floor:
            raise EtcdRegressed(
                f"etcd at {', '.join(self._key[:-1])} has gone back from revision {floor} to {revision}, so fencing "
                "tokens would repeat: a snapshot was restored without `--bump-revision 1000000000 --mark-compacted`. "
                "Restore it again with them; if the cluster was wiped on purpose, start this process anew"
            )
        if revision > self.revision:
            _highest[self._key] = revision
