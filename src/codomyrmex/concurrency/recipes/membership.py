"""``Group``: the members that are there, with their capabilities, on the wait queue: all of them hold together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.keys import GROUP, check_name
from codomyrmex.concurrency.models import Member, MemberEvent, SharedRecord
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.metadata import encode_value
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.entry import Requester
from codomyrmex.concurrency.waitqueue.grant import Grant, put_again
from codomyrmex.concurrency.waitqueue.rules import WithFields, shared


class Membership:
    """The membership of this process in a group. ``grant`` has its token and the event of its loss, as a lock's grant
    does."""

    def __init__(self, hold: Hold, capabilities: dict[str, Any]) -> None:
        self._hold = hold
        self.grant: Grant = hold.grants[0]
        self.capabilities = capabilities

    async def update(self, capabilities: dict[str, Any]) -> None:
        """Change the capabilities that others see.

        It costs one write and returns when etcd has confirmed it. Raises ``FencedWriteRejected`` when the membership
        is lost, ``TypeError`` or ``ValueError`` for capabilities that cannot be, or an ``EtcdError``.
        """
        text = _encoded(capabilities)
        entry = self._hold.entries[0]
        await put_again(entry, shared_values.replaced(entry.value, "capabilities", text))
        self.capabilities = capabilities

    def __repr__(self) -> str:
        return f"<Membership in {self.grant.name!r}>"


class Joining(AsyncOnly):
    """The result of ``Group.join``, for ``async with``. It can be used once."""

    def __init__(self, request: AcquireRequest, capabilities: dict[str, Any]) -> None:
        self._request = request
        self._rule = WithFields(shared, f',"capabilities":{_encoded(capabilities)}')
        self._capabilities = capabilities
        self._line = users_line()
        self._begun = False
        self._hold: Hold | None = None

    async def __aenter__(self) -> Membership:
        self._hold = await self._join()
        self._hold.protect()
        return Membership(self._hold, self._capabilities)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold
        await self._hold.leave(kind, error)

    async def _join(self, by: Requester | None = None) -> Hold:
        """``by`` is the requester if it is not the current task."""
        self._begun = True
        return await self._request.attempt((self._rule,), None, by)

    def __del__(self) -> None:
        if not self._begun:
            text = f"the joining of {self._request.describe()} was never entered by `async with`"
            warn(self._line, f"{text}: nobody has joined", RuntimeWarning)


class Group:
    """A group of processes that tell each other that they are there, and of their capabilities.

    A member that dies leaves with its session's lease. All observers see the same changes in the same order.

    Args:
        name: as a lock's; groups and locks of one name are apart.
        session: the session to use; the process's default one when left out.
        on_loss: ``"notify"`` only sets ``grant.lost`` when the membership is lost; ``"cancel"`` cancels its block too.
        metadata: shown to others with each member, as ``DistributedLock``'s.

    Raises ``InvalidName``, ``TypeError`` or ``ValueError`` for arguments that cannot be.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "notify",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._name = check_name(name)
        self._session = session
        self._request = AcquireRequest(
            session=session, queues=((GROUP, self._name),), on_loss=on_loss, metadata=metadata
        )

    @property
    def name(self) -> str:
        """The name of the group, in NFC."""
        return self._name

    def join(self, capabilities: dict[str, Any] | None = None) -> Joining:
        """Be a member during a block: ``async with group.join({"gpu": True}) as membership: ...``.

        ``capabilities`` is JSON of at most 64 KiB; none is an empty dict. Raises ``TypeError`` or ``ValueError`` for
        others.
        """
        return Joining(self._request, {} if capabilities is None else capabilities)

    async def members(self) -> tuple[Member, ...]:
        """The members at one revision, in the order in which they joined."""
        found = await shared_values.read(await ready(self._session), self._name, GROUP)
        return tuple(_member(self._name, entry) for entry in found.entries)

    async def watch(self) -> AsyncIterator[MemberEvent]:
        """Every change of the group in order, beginning with a ``joined`` for each member that is there.

        Changes that etcd compacted away while it could not be reached are told by their result. Raises ``SessionLost``
        when the session is over.
        """
        session = await ready(self._session)
        known: dict[int, Member] = {}
        async with aclosing(shared_values.follow(session, self._name, GROUP)) as told:
            async for queue in told:
                present = {member.token: member for member in (_member(self._name, one) for one in queue.entries)}
                for event in _changes(known, present, queue.revision):
                    yield event
                known = present

    def __repr__(self) -> str:
        return f"<Group {self._name!r}>"


def _changes(known: dict[int, Member], present: dict[int, Member], revision: int) -> list[MemberEvent]:
    """The events that lead from one state of a group to the next."""
    events = [MemberEvent("left", member, revision) for token, member in known.items() if token not in present]
    for token, member in present.items():
        if token not in known:
            events.append(MemberEvent("joined", member, revision))
        elif member.capabilities != known[token].capabilities:
            events.append(MemberEvent("changed", member, revision))
    return events


def _member(name: str, entry: shared_values.SharedEntry) -> Member:
    return Member(name, SharedRecord.decode(entry.value).capabilities, entry.owner, entry.owner.token)


def _encoded(capabilities: dict[str, Any]) -> str:
    if not isinstance(capabilities, dict):
        raise TypeError(f"capabilities must be a dict, not {type(capabilities).__name__}")
    return encode_value("capabilities", capabilities)
