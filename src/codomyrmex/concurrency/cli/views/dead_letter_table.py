"""Dead letters on the screen: a table with one row an entry, and one line for each change."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency import DeadLetter
from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid, cut
from codomyrmex.concurrency.cli.views.text import MOST, age, count, seconds_since, short, span, stamp, visible

_COLUMNS = (
    Column("ID"),
    Column("OPERATION", 1, least=16, name=True),
    Column("STATE"),
    Column("ATTEMPTS", 4, right=True),
    Column("CRASHES", 5, right=True),
    Column("DUE", 5),
    Column("AGE", 3, right=True),
    Column("ERROR", 2, least=20),
)
_WIDE = (*_COLUMNS, Column("ARGS", 6, least=16), Column("FINGERPRINT", 7))
_STYLES = {"waiting": "cyan", "running": "green", "parked": "bold red", "resolved": "dim"}
_LATE = 5.0  # seconds after which a due entry counts as one that no worker takes


def dead_letters(entries: Sequence[DeadLetter], *, wide: bool = False) -> Grid:
    """One row an entry."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for entry in entries:
        _add(grid, entry, wide)
    states = Counter(map(dead_letter_state, entries))
    sums = ", ".join(f"{states[word]} {word}" for word in ("parked", "overdue", "running", "waiting") if states[word])
    grid.foot = f"{count(len(entries), 'dead letter')}{': ' if sums else ''}{sums}"
    return grid


def _add(grid: Grid, entry: DeadLetter, wide: bool) -> None:
    text = entry.reason if entry.state in ("parked", "resolved") and entry.reason else error_of(entry)
    row: list[object] = [entry.id, short(entry.operation, MOST), state_cell(dead_letter_state(entry))]
    row += [tries(entry), entry.crash_count, Cell(due(entry), -_left(entry))]
    row += [time_cell(age(entry.created_at), seconds_since(entry.created_at)), cut(text, 200)]
    if wide:
        row += [cut(json.dumps(entry.args), 200), short(entry.fingerprint, MOST)]
    grid.add(*row, style=_STYLES[entry.state])


def dead_letter_state(entry: DeadLetter) -> str:
    """The state of an entry in a word; ``overdue``: it waits, it is due, and no worker takes it."""
    return "overdue" if entry.state == "waiting" and _left(entry) < -_LATE else entry.state


def dead_letter_line(entry: DeadLetter) -> Text:
    """An entry after a change, on one line."""
    line = stamp(datetime.now(UTC)).append(f"{entry.state:9}", style=_STYLES[entry.state])
    line.append(f"{visible(entry.operation)}  ", style="bold")
    figures = f"{visible(entry.id)}  attempt {entry.attempt_count}"
    return line.append(f"{figures}  {short(error_of(entry), 100)}", style="none")


def tries(entry: DeadLetter) -> str:
    """The number of attempts in the queue and, for an entry of a pool, of those in the pool before."""
    before = entry.metadata.get("attempts") if "pool" in entry.metadata else None
    return f"{entry.attempt_count}, {before} in pool" if isinstance(before, int) else str(entry.attempt_count)


def due(entry: DeadLetter) -> str:
    """The time until an entry is retried, or a word that no worker takes it."""
    if entry.state != "waiting" or entry.next_attempt_at is None:
        return "-"
    left = _left(entry)
    if left > 0:
        return f"in {span(left)}"
    return "now" if left > -_LATE else f"for {span(-left)}; no worker takes it"


def _left(entry: DeadLetter) -> float:
    """Seconds until an entry is due; below 0 for one that is overdue."""
    return (entry.next_attempt_at - datetime.now(UTC)).total_seconds() if entry.next_attempt_at else 0.0


def error_of(entry: DeadLetter) -> str:
    """The type and the text of an entry's error."""
    return f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
