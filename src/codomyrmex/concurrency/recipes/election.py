"""``Election``: one leader at a time, on the wait queue; a candidate that was there first leads next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.keys import ELECTION, check_name
from codomyrmex.concurrency.models import Leader
from codomyrmex.concurrency.recipes.acquire import AcquireRequest, OnDeadlock
from codomyrmex.concurrency.recipes.block import HeldBlock
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.metadata import encode_value
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.grant import Grant, put_again
from codomyrmex.concurrency.waitqueue.rules import Rule, WithFields, exclusive


class Term:
    """The time for which a process leads. ``grant`` has the fencing token, the time left to trust it, the event of its
    loss, and fenced writes, as a lock's grant does."""

    def __init__(self, hold: Hold, value: Any) -> None:
        self._hold = hold
        self.grant: Grant = hold.grants[0]
        self.value = value

    @property
    def token(self) -> int:
        """The fencing token; it rises with every term."""
        return self.grant.token

    @property
    def key(self) -> str:
        """The key of the leader's entry in etcd."""
        return self.grant.key

    async def proclaim(self, value: Any) -> None:
        """Tell everybody another value, which is JSON of at most 64 KiB.

        It costs one write, returns when etcd has confirmed it, and counts as progress. Raises ``FencedWriteRejected``
        when the term is over, ``TypeError`` or ``ValueError`` for another value, or an ``EtcdError``.
        """
        text = encode_value("value", value)
        entry = self._hold.entries[0]
        await put_again(entry, shared_values.replaced(entry.value, "value", text))
        self.value = value

    def __repr__(self) -> str:
        return f"<Term of {self.grant.name!r} with token {self.token}>"


class Campaign(HeldBlock):
    """The result of ``Election.campaign``, for ``async with``. It can be used once."""

    def __init__(self, request: AcquireRequest, rule: Rule, value: Any, timeout: float | None) -> None:
        super().__init__(request, rule, timeout, "campaign", "nobody was elected")
        self._value = value

    async def __aenter__(self) -> Term:
        return Term(await self._enter(), self._value)


class Election:
    """An election, in which candidates lead one after the other, in order of arrival.

    Args:
        name: as a lock's; elections and locks of one name are apart.
        session: the session to use; the process's default one when left out.
        on_loss: as ``DistributedLock``'s: ``"cancel"`` cancels the block of a term that is lost.
        metadata: shown to others with each candidate, as ``DistributedLock``'s.
        deadlock: as ``DistributedLock``'s: ``"fail"`` raises ``Deadlock`` from a candidate that waits in a cycle.

    Raises ``InvalidName``, ``TypeError`` or ``ValueError`` for arguments that cannot be.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._name = check_name(name)
        self._session = session
        self._request = AcquireRequest(
            session=session,
            queues=((ELECTION, self._name),),
            on_loss=on_loss,
            metadata=metadata,
            deadlock=deadlock,
        )

    @property
    def name(self) -> str:
        """The name of the election, in NFC."""
        return self._name

    def campaign(self, value: Any = None, timeout: float | None = None) -> Campaign:
        """Wait to lead, for at most ``timeout`` seconds (None: as long as it takes), and lead during a block:
        ``async with election.campaign({"url": url}) as term: ...``.

        ``value`` is JSON of at most 64 KiB, which ``leader`` tells everybody. The block raises as a lock's does, and
        ``TypeError`` or ``ValueError`` are raised at once for another value.
        """
        check_timeout(timeout)
        rule = WithFields(exclusive, f',"value":{encode_value("value", value)}')
        return Campaign(self._request, rule, value, timeout)

    async def leader(self) -> Leader | None:
        """The leader, as etcd has it now; None if nobody leads.

        During a handover it is the next candidate as soon as the former leader's entry is gone, which is before that
        candidate knows it.
        """
        session = await ready(self._session)
        first = await shared_values.first(session, queues(self._name))
        return _leader(first) if first else None

    async def observe(self) -> AsyncIterator[Leader]:
        """Every term in order, beginning with the present one, and every new value that a leader proclaims.

        Terms that etcd compacted away while it could not be reached are left out. Raises ``SessionLost`` when the
        session is over.
        """
        session = await ready(self._session)
        async with aclosing(succession(session, queues(self._name))) as found:
            async for leader in found:
                yield leader

    def __repr__(self) -> str:
        return f"<Election {self._name!r}>"


def queues(name: str | None = None, prefix: str = "") -> shared_values.Queues:
    """The election of a name, or without one those whose names start with ``prefix``. Raises ``InvalidName``."""
    return shared_values.Queues(ELECTION, None if name is None else check_name(name), prefix)


async def succession(session: SessionCore, of: shared_values.Queues) -> AsyncGenerator[Leader, None]:
    """Every term, and every new value, of some elections. Raises as ``Election.observe`` does."""
    known: dict[str, Leader] = {}
    async with aclosing(shared_values.follow(session, of)) as told:
        async for found in told:
            present = leaders(found.entries)
            for name, leader in present.items():
                if not _is_told(known.get(name), leader):
                    yield leader
            known = present


def leaders(entries: Iterable[shared_values.SharedEntry]) -> dict[str, Leader]:
    """The leaders of elections by name: the owners of the first entries."""
    found: dict[str, Leader] = {}
    for entry in entries:
        if entry.name not in found:
            found[entry.name] = _leader(entry)
    return found


def _leader(entry: shared_values.SharedEntry) -> Leader:
    return Leader(entry.name, entry.shared.value, entry.owner, entry.owner.token)


def _is_told(known: Leader | None, leader: Leader) -> bool:
    """True if the leader that was told last has the same term and the same value."""
    return known is not None and known.token == leader.token and shared_values.is_same(known.value, leader.value)
