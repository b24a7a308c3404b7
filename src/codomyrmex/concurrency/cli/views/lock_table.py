"""Locks on the screen: a table with one row a lock, and one line for each event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Column, Grid
from codomyrmex.concurrency.cli.views.owners import (
    agent,
    held_for,
    is_stuck,
    longest,
    metadata,
    note,
    owner,
    owners,
    waited_for,
)
from codomyrmex.concurrency.cli.views.text import count, span, stamp, visible
from codomyrmex.concurrency.cli.views.trees import event_title, title
from codomyrmex.concurrency.models import LockEvent, LockInfo
from codomyrmex.concurrency.wait_graph import WaitEdge

_COLUMNS = (
    Column("LOCK", least=20, name=True),
    Column("STATE", 2),
    Column("HOLDER"),
    Column("AGENT", 1, least=8),
    Column("TOKEN", 3, right=True),
    Column("HELD", right=True),
    Column("WAITED", 4, right=True),
    Column("WAITERS", 2, right=True),
    Column("NEXT", 5, least=12),
)
_WIDE = (*_COLUMNS, Column("SESSION", 6), Column("METADATA", 7, least=16))
_TROUBLE = {"deadlock": "in a deadlock (see `locks graph`)", "stuck": "stuck", "lost": "lost"}
_EVENTS = {"granted": "green", "enqueued": "cyan", "released": "dim", "expired": "bold red"}


Wait = tuple[str, str, int]
"""A wait: the kind and the name of its queue, and its token."""


def waits_in(cycles: Sequence[Sequence[WaitEdge]]) -> frozenset[Wait]:
    """The waits of deadlocks."""
    return frozenset((edge.queue.kind, edge.queue.name, edge.token) for cycle in cycles for edge in cycle)


def locks(infos: Sequence[LockInfo], *, wide: bool = False, remark: str = "", deadlocked: Container[Wait] = ()) -> Grid:
    """One row a lock, or a holder of paths: its first holder, the times of its hold and of its wait, its waiters.
    ``remark`` ends the foot. ``deadlocked`` are the waits of deadlocks."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for info in infos:
        _add(grid, info, wide, lock_state(info, deadlocked))
    waiting = len({(info.kind, info.name, one.key) for info in infos for one in info.waiters})
    states = Counter(lock_state(info, deadlocked) for info in infos)
    trouble = ", ".join(f"{states[word]} {text}" for word, text in _TROUBLE.items() if states[word])
    grid.foot = "; ".join(filter(None, [f"{count(len(infos), 'lock')}, {waiting} waiting", trouble, remark]))
    return grid


def _add(grid: Grid, info: LockInfo, wide: bool, state: str) -> None:
    first = info.holders[0]
    readers = f" +{count(len(info.holders) - 1, 'reader')}" if len(info.holders) > 1 else ""
    row = [title(info), state_cell(state), owner(first) + readers, agent(first), first.token]
    row += [time_cell(held_for(first), longest(info)), time_cell(waited_for(first), first.waited)]
    row += [len(info.waiters), owners(info.waiters)]
    if wide:
        row += [first.session, metadata(first)]
    grid.add(*row)


def lock_state(info: LockInfo, deadlocked: Container[Wait] = ()) -> str:
    """The state of a lock in a word.

    ``lost``: its holder died, and ``lock_delay`` keeps it closed. ``deadlock``: a waiter waits for it in a deadlock.
    ``stuck``: a waiter has waited for this holder for minutes. Else ``held``.
    """
    if any(one.lost for one in info.holders):
        return "lost"
    if any((info.kind, info.name, one.token) in deadlocked for one in info.waiters):
        return "deadlock"
    return "stuck" if is_stuck(info) else "held"


def lock_event(event: LockEvent) -> Text:
    """One event on one line."""
    one = event.owner
    line = stamp(event.at)
    line.append(f"{event.kind:9}", style=_EVENTS[event.kind])
    line.append(f"{visible(event_title(event))}  ", style="bold")
    named = agent(one)
    line.append(f"token {one.token}  {owner(one)}{'' if named == '-' else '  ' + visible(named)}", style="none")
    if event.kind == "granted" and one.waited is not None:
        line.append(f"  waited {span(one.waited)}", style="none")
    elif event.kind != "enqueued" and one.granted_at is not None:
        line.append(f"  held {span((event.at - one.granted_at).total_seconds())}", style="none")
    if event.kind in ("released", "expired") and one.note:
        line.append(f"  note: {visible(note(one))}", style="none")
    return line
