"""Semaphores on the screen: a table with one row a semaphore, one queue in full, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.owners import is_stuck, longest, owner, owners
from codomyrmex.concurrency.cli.views.queue_table import queue
from codomyrmex.concurrency.cli.views.text import count, span, stamp, visible
from codomyrmex.concurrency.models import SemaphoreInfo

_COLUMNS = (
    Column("SEMAPHORE", least=20, name=True),
    Column("STATE", 1),
    Column("LIMIT", right=True),
    Column("HELD", right=True),
    Column("FREE", right=True),
    Column("WAITERS", right=True),
    Column("HELD FOR", 2, right=True),
    Column("HOLDERS", 3, least=20),
    Column("NEXT", 4, least=12),
)


def semaphores(infos: Sequence[SemaphoreInfo], *, wide: bool = False) -> Grid:
    """One row a semaphore: its limit, its permits that are held and free, its holders and waiters."""
    grid = Grid(_COLUMNS)
    for info in infos:
        holders = ", ".join(map(owner, info.holders)) if wide and info.holders else owners(info.holders)
        limit: object = "?" if info.limit is None else info.limit
        row = [info.name, state_cell(semaphore_state(info)), limit, held_permits(info)]
        grid.add(*row, info.available, len(info.waiters), _held_for(info), holders, owners(info.waiters))
    held = sum(map(held_permits, infos))
    waiting = sum(len(info.waiters) for info in infos)
    stuck = sum(semaphore_state(info) == "stuck" for info in infos)
    sums = f"{count(len(infos), 'semaphore')}, {count(held, 'permit')} held, {waiting} waiting"
    grid.foot = f"{sums}; {stuck} stuck" if stuck else sums
    return grid


def _held_for(info: SemaphoreInfo) -> Cell:
    seconds = longest(info)
    return time_cell(span(seconds) if seconds is not None else "?" if info.holders else "-", seconds)


def held_permits(info: SemaphoreInfo) -> int:
    """The number of permits that are held."""
    return sum(one.permits for one in info.holders)


def semaphore_state(info: SemaphoreInfo) -> str:
    """The state of a semaphore in a word.

    ``stuck``: its limit is gone, or its first waiter wants more permits than the limit or has waited for minutes.
    Else ``free`` or ``full``.
    """
    if info.limit is None or any(one.permits > info.limit for one in info.waiters[:1]) or is_stuck(info):
        return "stuck"
    return "free" if info.available and not info.waiters else "full"


def semaphore(info: SemaphoreInfo) -> Grid:
    """The whole queue of one semaphore, under its figures."""
    title = f"{info.name}: {held_permits(info)} of {info.limit} permits held, {len(info.waiters)} wait"
    return queue(info.name, info.holders, info.waiters, title)


def semaphore_line(info: SemaphoreInfo) -> Text:
    """A semaphore after a change, on one line."""
    line = stamp(datetime.now(UTC)).append(f"{visible(info.name)}  ", style="bold")
    holders = f"{held_permits(info)} of {info.limit} held by {owners(info.holders)}"
    return line.append(f"{holders}; {len(info.waiters)} wait")
