"""Elections on the screen: a table with one row an election, one queue in full, and one line for each term."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from codomyrmex.concurrency.cli.election_rows import ElectionRow
from codomyrmex.concurrency.cli.views.cells import time_cell
from codomyrmex.concurrency.cli.views.grid import Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, held, held_for, metadata, owner, owners
from codomyrmex.concurrency.cli.views.queue_table import queue
from codomyrmex.concurrency.cli.views.text import MOST, count, short, stamp, visible
from codomyrmex.concurrency.models import Leader

_COLUMNS = (
    Column("ELECTION", least=20, name=True),
    Column("LEADER"),
    Column("AGENT", 2, least=8),
    Column("VALUE", 1, least=20),
    Column("TOKEN", 3, right=True),
    Column("LEADS", right=True),
    Column("CANDIDATES", 2, right=True),
    Column("NEXT", 5, least=12),
)
_WIDE = (*_COLUMNS, Column("SESSION", 6), Column("METADATA", 7, least=16))


def elections(rows: Sequence[ElectionRow], *, wide: bool = False) -> Grid:
    """One row an election: its leader, the value and the token of its term, its candidates."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for row in rows:
        one = row.leader
        cells = [row.name, owner(one), agent(one), as_json(row.value), row.token, time_cell(held_for(one), held(one))]
        cells += [len(row.candidates), owners(row.candidates)]
        grid.add(*cells, *([one.session, metadata(one)] if wide else []))
    grid.foot = count(len(rows), "election")
    return grid


def election(row: ElectionRow) -> Grid:
    """The leader and the candidates of one election, under its value."""
    return queue(row.name, (row.leader,), row.candidates, f"{row.name}: {as_json(row.value)}")


def term_line(leader: Leader) -> Text:
    """A term, or a new value of one, on one line."""
    one = leader.owner
    line = stamp(datetime.now(UTC)).append(f"{visible(leader.name)}  ", style="bold")
    named = agent(one)
    line.append(f"token {leader.token}  {owner(one)}{'' if named == '-' else '  ' + visible(named)}", style="none")
    return line.append(f"  {as_json(leader.value)}", style="none")


def as_json(value: Any) -> str:
    """A value as JSON in ASCII, as much of it as a table shows."""
    return short(json.dumps(value), MOST)
