"""``Group``: the members that are there, with their capabilities, on the wait queue: all of them hold together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from codomyrmex.concurrency.keys import GROUP, check_name
from codomyrmex.concurrency.models import Member, MemberEvent
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.block import HeldBlock
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.metadata import encode_value
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.grant import Grant, put_again
from codomyrmex.concurrency.waitqueue.rules import Rule, WithFields, unconditional


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


class Joining(HeldBlock):
    """The result of ``Group.join``, for ``async with``. It can be used once."""

    def __init__(self, request: AcquireRequest, rule: Rule, capabilities: dict[str, Any]) -> None:
        super().__init__(request, rule, None, "joining", "nobody has joined")
        self._capabilities = capabilities

    async def __aenter__(self) -> Membership:
        return Membership(await self._enter(), self._capabilities)


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
        capabilities = {} if capabilities is None else capabilities
        rule = WithFields(unconditional, f',"capabilities":{_encoded(capabilities)}')
        return Joining(self._request, rule, capabilities)

    async def members(self) -> tuple[Member, ...]:
        """The members at one revision, in the order in which they joined."""
        session = await ready(self._session)
        found = await shared_values.read(session, queues(self._name))
        return tuple(members(found.entries))

    async def watch(self) -> AsyncIterator[MemberEvent]:
        """Every change of the group in order, beginning with a ``joined`` for each member that is there.

        Changes that etcd compacted away while it could not be reached are told by their result. Raises ``SessionLost``
        when the session is over.
        """
        session = await ready(self._session)
        async with aclosing(changes(session, queues(self._name))) as events:
            async for event in events:
                yield event

    def __repr__(self) -> str:
        return f"<Group {self._name!r}>"


def queues(name: str | None = None, prefix: str = "") -> shared_values.Queues:
    """The group of a name, or without one those whose names start with ``prefix``. Raises ``InvalidName``."""
    return shared_values.Queues(GROUP, None if name is None else check_name(name), prefix)


async def changes(session: SessionCore, of: shared_values.Queues) -> AsyncGenerator[MemberEvent, None]:
    """Every change of some groups. Raises as ``Group.watch`` does."""
    known: dict[str, Member] = {}
    async with aclosing(shared_values.follow(session, of)) as told:
        async for found in told:
            present = {member.owner.key: member for member in members(found.entries)}
            for event in _between(known, present, found.revision):
                yield event
            known = present


def members(entries: Iterable[shared_values.SharedEntry]) -> Iterator[Member]:
    """The members of groups, in the order in which they joined."""
    return (Member(one.name, one.shared.capabilities, one.owner, one.owner.token) for one in entries)


def _between(known: dict[str, Member], present: dict[str, Member], revision: int) -> list[MemberEvent]:
    """The events that lead from one state of groups, by the keys of the members, to the next."""

    def is_there(one: Member, state: dict[str, Member]) -> bool:
        other = state.get(one.owner.key)
        return other is not None and other.token == one.token  # else the key was used again

    events = [MemberEvent("left", one, revision) for one in known.values() if not is_there(one, present)]
    for key, one in present.items():
        if not is_there(one, known):
            events.append(MemberEvent("joined", one, revision))
        elif not shared_values.is_same(one.capabilities, known[key].capabilities):
            events.append(MemberEvent("changed", one, revision))
    return events


def _encoded(capabilities: dict[str, Any]) -> str:
    if not isinstance(capabilities, dict):
        raise TypeError(f"capabilities must be a dict, not {type(capabilities).__name__}")
    return encode_value("capabilities", capabilities)
