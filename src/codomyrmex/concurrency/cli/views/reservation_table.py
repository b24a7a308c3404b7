"""Reservations on the screen: a table with one row a reservation, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from rich.text import Text

from codomyrmex.concurrency.cli.agents.agent import TREE
from codomyrmex.concurrency.cli.agents.reservation_events import ReservationEvent
from codomyrmex.concurrency.cli.views.cells import time_cell
from codomyrmex.concurrency.cli.views.grid import Column, Grid
from codomyrmex.concurrency.cli.views.reservation_text import brief, left, note, scope
from codomyrmex.concurrency.cli.views.text import MOST, age, count, seconds_since, short, stamp, visible
from codomyrmex.concurrency.models import ReservationInfo

_AGENT = Column("AGENT", least=10, name=True)
_RESERVED = Column("RESERVED", least=16)
_TREE = Column("TREE", 1, least=8, name=True)
_COLUMNS = (
    Column("LEFT", right=True),
    Column("SINCE", 2, right=True),
    Column("TOKEN", 3, right=True),
    Column("NOTE", 1, least=16),
)
_WIDE = (*_COLUMNS, Column("MODE", 4), Column("HOST", least=12, name=True), Column("LEASE"))
_EVENTS = {"reserved": "green", "renewed": "cyan", "ended": "dim"}


def reservations(found: Sequence[ReservationInfo], *, wide: bool = False) -> Grid:
    """One row a reservation, in the order of their age. TREE is left out if all paths are of the default tree."""
    in_trees = not {one.tree for one in found} <= {None, TREE}
    columns = _WIDE if wide else _COLUMNS
    grid = Grid((_AGENT, _RESERVED, *([_TREE] if in_trees else []), *columns))
    for one in sorted(found, key=attrgetter("token")):
        start = one.granted_at or one.since
        since = time_cell(age(start), None if start is None else seconds_since(start))
        row: list[object] = [
            short(one.owner, MOST) or "-",
            brief(one),
            *([one.tree or "-"] if in_trees else []),
            time_cell(left(one.expires_in), one.expires_in),
            since,
        ]
        row += [one.token, short(one.note, MOST) or "-"]
        if wide:
            row += ["shared" if one.shared else "alone", f"{one.host}:{one.pid}", one.lease]
        grid.add(*row)
    grid.foot = count(len(found), "reservation")
    return grid


def event(one: ReservationEvent) -> Text:
    """One change on one line."""
    line = stamp(one.at).append(f"{one.kind:9}", style=_EVENTS[one.kind])
    line.append(f"{scope(one.reservation)}  ", style="bold")
    time = "" if one.kind == "ended" else f", {left(one.reservation.expires_in)} left"
    return line.append(f"{visible(one.reservation.owner) or '-'}{time}{note(one.reservation.note)}", style="none")
