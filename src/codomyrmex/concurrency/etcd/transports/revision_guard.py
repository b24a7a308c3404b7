"""Notices that etcd went back to an earlier revision.

This happens when a snapshot is restored without raising its revision. etcd would then give out revisions, and with them
fencing tokens, a second time.

Transactions are linearizable: one sent after revision n was seen is answered at n or later. The process remembers the
highest revision that a transaction's answer showed, for each list of endpoints and namespace, for as long as it lives.
So a new session notices as well.
"""

from __future__ import annotations

from codomyrmex.concurrency.errors import EtcdRegressed

_highest: dict[tuple[str, ...], int] = {}


class RevisionGuard:
    """The highest revision in answers of transactions that this process got from some endpoints, for one namespace."""

    def __init__(self, endpoints: tuple[str, ...], namespace: str) -> None:
        self._key = (*endpoints, namespace)

    @property
    def revision(self) -> int:
        """The highest revision seen; 0 before the first."""
        return _highest.get(self._key, 0)

    def check(self, revision: int, floor: int) -> None:
        """Note the ``revision`` of an answer; raises ``EtcdRegressed`` if it is below ``floor``.

        ``floor`` is the highest revision that was known when the transaction was sent.
        """
        if revision < floor:
            raise EtcdRegressed(
                f"etcd at {', '.join(self._key[:-1])} has gone back from revision {floor} to {revision}, so fencing "
                "tokens would repeat: a snapshot was restored without `--bump-revision 1000000000 --mark-compacted`. "
                "Restore it again with them; if the cluster was wiped on purpose, start this process anew"
            )
        if revision > self.revision:
            _highest[self._key] = revision
