"""``Election``: one leader at a time, on the wait queue; a candidate that was there first leads next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.keys import ELECTION, check_name
from codomyrmex.concurrency.models import Leader, SharedRecord
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.metadata import encode_value
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.entry import Requester
from codomyrmex.concurrency.waitqueue.grant import Grant, put_again
from codomyrmex.concurrency.waitqueue.rules import WithFields, exclusive


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


class Campaign(AsyncOnly):
    """The result of ``Election.campaign``, for ``async with``. It can be used once."""

    def __init__(self, request: AcquireRequest, value: Any, timeout: float | None) -> None:
        self._request = request
        self._rule = WithFields(exclusive, f',"value":{encode_value("value", value)}')
        self._value = value
        self._timeout = timeout
        self._line = users_line()
        self._begun = False
        self._hold: Hold | None = None

    async def __aenter__(self) -> Term:
        self._hold = await self._campaign()
        self._hold.protect()
        return Term(self._hold, self._value)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold
        await self._hold.leave(kind, error)

    async def _campaign(self, by: Requester | None = None) -> Hold:
        """``by`` is the requester if it is not the current task."""
        self._begun = True
        return await self._request.attempt((self._rule,), self._timeout, by)

    def __del__(self) -> None:
        if not self._begun:
            text = f"the campaign of {self._request.describe()} was never entered by `async with`"
            warn(self._line, f"{text}: nobody was elected", RuntimeWarning)


class Election:
    """An election, in which candidates lead one after the other, in order of arrival.

    Args:
        name: as a lock's; elections and locks of one name are apart.
        session: the session to use; the process's default one when left out.
        on_loss: as ``DistributedLock``'s: ``"cancel"`` cancels the block of a term that is lost.
        metadata: shown to others with each candidate, as ``DistributedLock``'s.

    Raises ``InvalidName``, ``TypeError`` or ``ValueError`` for arguments that cannot be.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._name = check_name(name)
        self._session = session
        self._request = AcquireRequest(
            session=session, queues=((ELECTION, self._name),), on_loss=on_loss, metadata=metadata
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
        return Campaign(self._request, value, timeout)

    async def leader(self) -> Leader | None:
        """The leader, as etcd has it now; None if nobody leads."""
        session = await ready(self._session)
        found = await shared_values.read(session, self._name, ELECTION)
        return next((_leader(self._name, one) for one in found.entries[:1]), None)

    async def observe(self) -> AsyncIterator[Leader]:
        """Every term in order, beginning with the present one, and every value that a leader proclaims.

        Terms that etcd compacted away while it could not be reached are left out. Raises ``SessionLost`` when the
        session is over.
        """
        session = await ready(self._session)
        last: Leader | None = None
        async with aclosing(shared_values.follow(session, self._name, ELECTION)) as told:
            async for queue in told:
                leader = _leader(self._name, queue.entries[0]) if queue.entries else None
                if leader and (last is None or (leader.token, leader.value) != (last.token, last.value)):
                    yield leader
                last = leader or last

    def __repr__(self) -> str:
        return f"<Election {self._name!r}>"


def _leader(name: str, entry: shared_values.SharedEntry) -> Leader:
    return Leader(name, SharedRecord.decode(entry.value).value, entry.owner, entry.owner.token)
