"""The holders and waiters that are in the way of names and paths, by one look at etcd."""

from __future__ import annotations

from typing import NamedTuple

from codomyrmex.concurrency import LockManager, Owner, ReservationInfo, Session
from codomyrmex.concurrency.cli.agents.outcomes import Holder
from codomyrmex.concurrency.cli.agents.wanted import Wanted


class Obstacles(NamedTuple):
    """The holders in the way, and the tokens of the waiters of each queue. ``own`` is the token of this session's."""

    holders: tuple[Holder, ...]
    waiting: tuple[tuple[int, ...], ...]
    own: int | None

    def position(self, own: int | None) -> int:
        """The place of a waiter with the token ``own``, from 1; of one that comes now without it."""
        return 1 + max((sum(own is None or one < own for one in queue) for queue in self.waiting), default=0)


async def obstacles(session: Session, wanted: Wanted) -> Obstacles:
    """The present obstacles of ``wanted``; entries of ``session`` itself are none."""
    manager, ours = LockManager(session), f"{session.id:016x}"
    reservations = {one.token: one for one in await manager.reservations()}
    holders = {token: reserved(one) for token, one in reservations.items() if wanted.conflicts_with(one)}
    waiting, own = [], None
    for name in wanted.names:
        if info := await manager.info(name):
            for one in info.holders:
                if one.session != ours and not (one.shared and wanted.shared):
                    holders.setdefault(one.token, _held(name, one))
            own = next((one.token for one in info.waiters if one.session == ours), own)
            waiting.append(tuple(one.token for one in info.waiters if one.session != ours))
    return Obstacles(tuple(holders[token] for token in sorted(holders)), tuple(waiting), own)


def reserved(one: ReservationInfo) -> Holder:
    """The holder that a reservation is."""
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
        since=one.since,
        expires_in=one.expires_in,
    )


def _held(name: str, one: Owner) -> Holder:
    agent = one.metadata.get("agent")
    return Holder(
        agent=agent if isinstance(agent, str) else "",
        host=one.host,
        pid=one.pid,
        names=(name,),
        paths=(),
        tree=None,
        shared=one.shared,
        token=one.token,
        note="",
        since=one.granted_at or one.since,
        expires_in=None,
    )
