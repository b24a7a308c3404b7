"""The past of a lock on the screen: a table with one row a hold."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, metadata, note, owner, paths
from codomyrmex.concurrency.cli.views.text import MOST, count, seconds_since, short, span
from codomyrmex.concurrency.models import History, PastHold

_HEAD = (Column("TOKEN", right=True), Column("HOLDER", least=12), Column("AGENT", 2, least=8))
_PATHS = Column("PATHS", 1, least=20)
_TIMES = (Column("GRANTED"), Column("ENDED"), Column("HOW"), Column("HELD", 1, right=True))
_REST = (Column("WAITED", 3, right=True), Column("REVISION", 4, right=True))
_REASON = Column("REASON", 2, least=16)
_WIDE = (Column("SESSION", 5), Column("METADATA", 6, least=16), Column("NOTE", 6, least=16))


def holds(history: History, beginning: str, rows: Sequence[PastHold], *, wide: bool = False) -> Grid:
    """One row for each of ``rows``, which are holds of ``history``. The title has its ``beginning``, in words.

    The column ``PATHS`` is there for a tree, and ``REASON`` if an operator released a hold by force. ``HELD`` counts
    until now for a hold that has not ended.
    """
    tree = history.kind == "path"
    forced = any(hold.forced for hold in rows)
    columns = (*_HEAD, *[_PATHS] * tree, *_TIMES, *_REST, *[_REASON] * forced, *(_WIDE if wide else ()))
    grid = Grid(columns, title=f"{'tree ' if tree else ''}{history.name}: {beginning}")
    for hold in rows:
        one = hold.owner
        row: list[object] = [hold.token, owner(one) + " (reader)" * one.shared, agent(one), *[paths(one)] * tree]
        row += [_granted(hold), _ended(hold), state_cell(hold.how), _held(hold)]
        row += ["?" if hold.waited is None else time_cell(span(hold.waited), hold.waited)]
        row += [hold.granted_revision or "earlier", *[_reason(hold)] * forced]
        if wide:
            row += [one.session, metadata(one), note(one)]
        grid.add(*row, style="green" if hold.how == "held" else "")
    grid.foot = f"{count(len(rows), 'hold')}; {len(history.waits)} left the queue without having held it"
    return grid


def moment(at: datetime) -> str:
    """A time in this host's zone; the date is left out if it is today's."""
    local = at.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().astimezone().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def missing(gaps: Sequence[tuple[int, int]]) -> str:
    """The gaps of a record, in words that follow those of its beginning; empty if it has none."""
    ranges = [f"{first}" if first == last else f"{first}-{last}" for first, last in gaps]
    return f", without revisions {', '.join(ranges)}" if ranges else ""


def _granted(hold: PastHold) -> str:
    if hold.granted_at is not None:
        return moment(hold.granted_at)
    return "?" if hold.granted_revision else "earlier"


def _ended(hold: PastHold) -> str:
    if hold.how == "held":
        return "-"
    if hold.ended_at is not None:
        return moment(hold.ended_at)
    return f"before {moment(hold.ended_before)}" if hold.ended_before else "?"


def _held(hold: PastHold) -> Cell:
    """The time of a hold; one that is only bounded has a ``<``."""
    if hold.granted_at is None:
        return time_cell("?", None)
    if hold.how == "held":
        seconds = seconds_since(hold.granted_at)
        return time_cell(span(seconds), seconds)
    if hold.held is not None:
        return time_cell(span(hold.held), hold.held)
    if hold.ended_before is None:
        return time_cell("?", None)
    most = max(0.0, (hold.ended_before - hold.granted_at).total_seconds())
    return time_cell(f"<{span(most + 1)}", most)


def _reason(hold: PastHold) -> str:
    return short(f"{hold.forced.by}: {hold.forced.reason}", MOST) if hold.forced else "-"
