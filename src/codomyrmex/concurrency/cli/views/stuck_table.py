"""Holders without progress on the screen: a table with one row each, and one line for each event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import time_cell
from codomyrmex.concurrency.cli.views.grid import Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, held, held_for, metadata, note, owner
from codomyrmex.concurrency.cli.views.text import count, seconds_since, span, stamp, visible
from codomyrmex.concurrency.cli.views.trees import stuck_title
from codomyrmex.concurrency.waitqueue.idle_times import StuckHolder

_COLUMNS = (
    Column("LOCK", least=20, name=True),
    Column("HOLDER"),
    Column("AGENT", 1, least=8),
    Column("TOKEN", 3, right=True),
    Column("IDLE", right=True),
    Column("HELD", 4, right=True),
    Column("NOTE", 2, least=16),
)
_WIDE = (*_COLUMNS, Column("SESSION", 5), Column("METADATA", 6, least=16))


def holders(several: Sequence[StuckHolder], *, wide: bool = False) -> Grid:
    """One row a holder. ``IDLE`` counts from when this command first saw it without its next progress."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for holder in several:
        one, idle = holder.owner, seconds_since(holder.idle_since)
        row = [stuck_title(holder), owner(one), agent(one), one.token]
        row += [time_cell(span(idle), idle), time_cell(held_for(one), held(one)), note(one)]
        if wide:
            row += [one.session, metadata(one)]
        grid.add(*row)
    grid.foot = f"{count(len(several), 'holder')} without progress"
    return grid


def event(holder: StuckHolder) -> Text:
    """A holder that has become stuck, or is so no longer, on one line."""
    one = holder.owner
    line = stamp(datetime.now(UTC))
    line.append(f"{'stuck' if holder.stuck else 'cleared':9}", style="bold yellow" if holder.stuck else "green")
    line.append(f"{visible(stuck_title(holder))}  ", style="bold")
    named = agent(one)
    line.append(f"token {one.token}  {owner(one)}{'' if named == '-' else '  ' + visible(named)}", style="none")
    line.append(f"  idle {span(seconds_since(holder.idle_since))}", style="none")
    return line.append(f"  note: {visible(note(one))}" if one.note else "", style="none")
