"""The holders and waiters that are in the way of names and paths, by one look at etcd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from codomyrmex.concurrency import LockInfo, LockManager, Owner, ReservationInfo, Session
from codomyrmex.concurrency.cli.agents.outcomes import Holder
from codomyrmex.concurrency.cli.agents.wanted import Wanted


class Obstacles(NamedTuple):
    """The holders in the way, and the tokens of the waiters in the way, queue by queue. ``own`` is the token of the
    entry that this session waits with."""

    holders: tuple[Holder, ...]
    waiting: tuple[tuple[int, ...], ...]
    own: int | None

    def position(self, own: int | None) -> int:
        """The number in the queue of the entry with the token ``own``, from 1; without it, of one that joins now."""
        return 1 + max((sum(own is None or one < own for one in queue) for queue in self.waiting), default=0)


async def obstacles(session: Session, wanted: Wanted) -> Obstacles:
    """The present obstacles of ``wanted``; entries of ``session`` itself are none."""
    manager, ours = LockManager(session), f"{session.id:016x}"
    reservations = [_reserved(one) for one in await manager.reservations()]
    holders = {one.token: one for one in reservations if wanted.conflicts_with(one)}
    waiting, own = [], None
    for queue in await _queues(manager, wanted):
        own = next((one.token for one in queue.waiters if one.session == ours), own)
        conflicts = [
            [held for one in owners if one.session != ours and wanted.conflicts_with(held := _held(queue, one))]
            for owners in (queue.holders, queue.waiters)
        ]
        for one in conflicts[0]:
            holders.setdefault(one.token, one)
        waiting.append(tuple(one.token for one in conflicts[1]))
    return Obstacles(tuple(holders[token] for token in sorted(holders)), tuple(waiting), own)


async def _queues(manager: LockManager, wanted: Wanted) -> list[LockInfo]:
    found = [await manager.info(name) for name in wanted.names]
    if wanted.paths:
        found.append(await manager.info(wanted.tree, kind="path"))
    return [one for one in found if one]


async def holders_in(session: Session, tree: str, reservations: Sequence[ReservationInfo]) -> list[Holder]:
    """The holders of paths of a tree, in the order of their tokens: those of ``reservations``, and others."""
    found = {one.token: _reserved(one) for one in reservations if one.tree == tree}
    if queue := await LockManager(session).info(tree, kind="path"):
        for one in queue.holders:
            found.setdefault(one.token, _held(queue, one))
    return [found[token] for token in sorted(found)]


def _reserved(one: ReservationInfo) -> Holder:
    return Holder(
        agent=one.owner,
        host=one.host,
        pid=one.pid,
        names=one.names,
        paths=one.paths,
        tree=one.tree,
        shared=one.shared,
        token=one.token,
        note=one.note,
        since=one.granted_at or one.since,
        expires_in=one.expires_in,
    )


def _held(queue: LockInfo, one: Owner) -> Holder:
    """The owner of an entry of a queue. A foreign entry in a tree, which names no paths, has the whole tree."""
    in_tree, agent = queue.kind == "path", one.metadata.get("agent")
    return Holder(
        agent=agent if isinstance(agent, str) else "",
        host=one.host,
        pid=one.pid,
        names=() if in_tree else (queue.name,),
        paths=(one.paths or ("",)) if in_tree else (),
        tree=queue.name if in_tree else None,
        shared=one.shared,
        token=one.token,
        note=one.note,
        since=one.granted_at or one.since,
        expires_in=None,
    )
