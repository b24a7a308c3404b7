"""The operations of dead letter queues: a table with one row an operation, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import STYLES, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.text import MOST, age, count, seconds_since, short, stamp, visible
from codomyrmex.concurrency.dead_letters.stats import OperationSummary

_COLUMNS = (
    Column("QUEUE", 1, least=10, name=True),
    Column("OPERATION", least=16, name=True),
    *(Column(title, right=True) for title in ("WAITING", "RUNNING", "PARKED")),
    *(Column(title, rank, right=True) for title, rank in (("RESOLVED", 3), ("KINDS", 4), ("OLDEST", 3))),
)


def summaries(found: Sequence[OperationSummary], *, wide: bool = False) -> Grid:
    """One row an operation of a queue. ``wide`` changes nothing."""
    grid = Grid(_COLUMNS)
    for one in found:
        counts = (one.waiting, one.running, Cell(str(one.parked), one.parked, STYLES["parked"] if one.parked else ""))
        oldest = time_cell("-", None) if one.oldest is None else time_cell(age(one.oldest), seconds_since(one.oldest))
        row = (one.queue, short(one.operation, MOST), *counts, one.resolved, one.fingerprints, oldest)
        grid.add(*row, style="red" if one.parked else "")
    parked, waiting = sum(one.parked for one in found), sum(one.waiting for one in found)
    grid.foot = f"{count(len(found), 'operation')}: {parked} parked, {waiting} waiting"
    return grid


def summary_line(one: OperationSummary) -> Text:
    """An operation's figures after a change, on one line."""
    line = stamp(datetime.now(UTC)).append(f"{visible(one.queue)} {visible(one.operation)}  ", style="bold")
    counts = f"{one.waiting} waiting, {one.running} running, {one.parked} parked, {one.resolved} resolved"
    return line.append(counts)
