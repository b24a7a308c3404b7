"""The whole queue of one lock or semaphore: one row for each holder and each waiter."""

from __future__ import annotations

from collections.abc import Sequence

from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, held, held_for, metadata, note, owner, paths, waited_for
from codomyrmex.concurrency.cli.views.text import age, seconds_since
from codomyrmex.concurrency.models import Owner

_HEAD = (Column("#", 3, right=True), Column("STATE"))
_PERMITS = Column("PERMITS", 1, right=True)
_NOTE = Column("NOTE", 2, least=16)
_PATHS = Column("PATHS", 1, least=20)
_REST = (
    Column("OWNER"),
    Column("AGENT", 1, least=8),
    Column("TOKEN", 2, right=True),
    Column("HELD", right=True),
    Column("WAITED", right=True),
    Column("SESSION", 4),
    Column("METADATA", 5, least=16),
)


def queue(name: str, holders: Sequence[Owner], waiters: Sequence[Owner], title: str = "") -> Grid:
    """The holders, then the waiters, in the order of the queue.

    ``HELD`` counts from the grant. ``WAITED`` counts from joining: until the grant for a holder, until now for a
    waiter. The column ``PERMITS`` is there if an owner has several, ``PATHS`` for a tree, and ``NOTE`` if a holder has
    reported with a note.
    """
    several = any(one.permits > 1 for one in (*holders, *waiters))
    tree = any(one.paths for one in (*holders, *waiters))
    noted = any(one.note for one in holders)
    grid = Grid((*_HEAD, *[_PERMITS] * several, *[_PATHS] * tree, *_REST, *[_NOTE] * noted), title=title or name)
    for number, one in enumerate((*holders, *waiters)):
        holds = number < len(holders)
        extra = [*[one.permits] * several, *[paths(one)] * tree]
        times = _holder_times(one) if holds else _waiter_times(one)
        row = [number, _state(one, holds), *extra, owner(one), agent(one), one.token, *times]
        row += [one.session, metadata(one), *[note(one)] * noted]
        grid.add(*row, style="green" if holds else "")
    grid.foot = f"{len(holders)} hold, {len(waiters)} wait"
    return grid


def _state(one: Owner, holds: bool) -> Cell:
    word = "lost" if one.lost else "holds" if holds else "waits"
    return state_cell(word, f"{word} (reader)" if one.shared else word)


def _holder_times(one: Owner) -> list[object]:
    return [time_cell(held_for(one), held(one)), time_cell(waited_for(one), one.waited)]


def _waiter_times(one: Owner) -> list[object]:
    waited = one.waited if one.since is None else seconds_since(one.since)
    return ["-", time_cell(age(one.since), waited)]
