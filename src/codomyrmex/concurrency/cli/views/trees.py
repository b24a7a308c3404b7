"""Trees on the screen: one row for each holder of paths, with the waiters that it keeps out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from codomyrmex.concurrency.cli.views.owners import paths
from codomyrmex.concurrency.models import LockEvent, LockInfo, Owner
from codomyrmex.concurrency.waitqueue.idle_times import StuckHolder
from codomyrmex.concurrency.waitqueue.scopes import Scopes, scopes_of


def by_holder(infos: Sequence[LockInfo]) -> list[LockInfo]:
    """The locks as they are; of each tree, one ``LockInfo`` a holder, with the waiters that wait for it, directly or
    behind another waiter. A waiter may wait for several holders."""
    rows: list[LockInfo] = []
    for info in infos:
        if info.kind == "path":
            rows += [replace(info, holders=(one,), waiters=_kept_out(one, info.waiters)) for one in info.holders]
        else:
            rows.append(info)
    return rows


def _kept_out(holder: Owner, waiters: Sequence[Owner]) -> tuple[Owner, ...]:
    first: list[Scopes] = [_scopes(holder)]
    found = []
    for one in waiters:
        scopes = _scopes(one)
        if any(scopes.overlaps(other) for other in first):
            first.append(scopes)
            found.append(one)
    return tuple(found)


def _scopes(one: Owner) -> Scopes:
    return scopes_of(one.paths, one.shared)


def title(info: LockInfo) -> str:
    """The name of a lock; of a tree, also the paths of its first holder."""
    return f"tree {info.name}: {paths(info.holders[0])}" if info.kind == "path" else info.name


def stuck_title(holder: StuckHolder) -> str:
    """The name of a holder's lock; of a tree, also the holder's paths."""
    return f"tree {holder.name}: {paths(holder.owner)}" if holder.owner.paths else holder.name


def event_title(event: LockEvent) -> str:
    """The name of an event's lock; of a tree, also the paths of the event's owner."""
    return f"tree {event.name}: {paths(event.owner)}" if event.queue_kind == "path" else event.name
