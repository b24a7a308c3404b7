"""Rate limiters on the screen: a table with one row a dimension, the users of one, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.rate_rows import RateRow
from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, metadata, owner
from codomyrmex.concurrency.cli.views.text import age, count, seconds_since, stamp, visible
from codomyrmex.concurrency.models import Owner, RateLimitInfo, RateUse
from codomyrmex.concurrency.rates.rate import period

_COLUMNS = (
    Column("LIMITER", least=20, name=True),
    Column("DIMENSION"),
    Column("STATE", 1),
    Column("LIMIT", right=True),
    Column("PER", right=True),
    Column("USED", right=True),
    Column("FREE", right=True),
    Column("WAITING", right=True),
    Column("WAITERS", 2, right=True),
    Column("PAUSED UNTIL", 1, right=True),
)
_UNKNOWN = Cell("-", -1.0)
_BY = Column("PAUSED BY", 3, least=12)
_USERS = (
    Column("STATE"),
    Column("DIMENSION", 1),
    Column("AMOUNT", right=True),
    Column("OWNER"),
    Column("AGENT", 1, least=8),
    Column("SINCE", right=True),
    Column("SESSION", 4),
    Column("METADATA", 5, least=16),
)


def rate_limiters(rows: Sequence[RateRow], *, wide: bool = False) -> Grid:
    """One row a dimension: its limit, what is used and free, and what is waited for. ``wide`` adds who paused it.

    During a pause processes wait without standing in the queue, so an empty queue is shown as unknown.
    """
    grid = Grid((*_COLUMNS, *[_BY] * wide))
    for row in rows:
        waits = [number or (_UNKNOWN if row.paused_until else 0) for number in (row.waiting, row.waiters)]
        figures = [row.limit, Cell(period(row.per), row.per), row.used, row.free, *waits]
        by = [row.paused_by or "-"] * wide
        grid.add(row.name, row.dimension or "-", state_cell(rate_state(row)), *figures, _until(row.paused_until), *by)
    paused = len({row.name for row in rows if row.paused_until})
    sums = count(len({row.name for row in rows}), "rate limiter")
    grid.foot = f"{sums}; {paused} paused" if paused else sums
    return grid


def rate_state(row: RateRow) -> str:
    """The state of a dimension in a word: ``paused``, ``full`` or ``free``."""
    if row.paused_until:
        return "paused"
    return "free" if row.free and not row.waiters else "full"


def rate_limiter(info: RateLimitInfo) -> Grid:
    """The processes that use a rate limiter and wait for it, under its figures and its pause."""
    pause = bool(info.paused_until)
    used = [f"{use.used} of {_limit(use)} used{_waited_for(use.waiting, pause)}" for use in info.uses] or [
        "not in etcd"
    ]
    grid = Grid(_USERS, title=info.name, lines=[*used, *[paused(info)] * pause])
    for use in info.uses:
        for one in use.holders:
            _add(grid, "uses", use, one)
        for one in use.waiters:
            _add(grid, "waits", use, one)
    return grid


def _add(grid: Grid, state: str, use: RateUse, one: Owner) -> None:
    since = time_cell(age(one.since), None if one.since is None else seconds_since(one.since))
    row = [state_cell(state), use.dimension or "-", one.permits, owner(one), agent(one), since, one.session]
    grid.add(*row, metadata(one), style="green" if state == "uses" else "")


def rate_row_line(row: RateRow) -> Text:
    """A dimension after a change, on one line."""
    line = stamp(datetime.now(UTC)).append(f"{visible(row.name)}  ", style="bold")
    dimension = f" {visible(row.dimension)}" if row.dimension else ""
    waited_for = _waited_for(row.waiting, bool(row.paused_until))
    line.append(f"{row.used} of {row.limit}{dimension} per {period(row.per)} used{waited_for}")
    return line.append(_pause(row.paused_until, row.paused_by))


def rate_line(info: RateLimitInfo) -> Text:
    """A rate limiter after a change, on one line."""
    return stamp(datetime.now(UTC)).append(f"{visible(info.name)}  ", style="bold").append(figures(info))


def figures(info: RateLimitInfo, waiting: int | None = None) -> str:
    """The use of each limit, the number of processes that wait, and the pause. ``waiting`` is that number where the
    caller knows it better than the queue shows it."""
    if not info.uses:
        return "not in etcd"
    used = ", ".join(f"{use.used} of {_limit(use)}" for use in info.uses)
    number = info.waiting if waiting is None else waiting
    waits = "" if info.paused_until else f"; {number} wait" + "s" * (number == 1)
    return f"{used} used{waits}{_pause(info.paused_until, info.paused_by)}"


def limits(info: RateLimitInfo) -> str:
    """The limits in words: ``100 requests per minute, 50000 tokens per day``."""
    return ", ".join(map(_limit, info.uses))


def paused(info: RateLimitInfo) -> str:
    """The pause in words; nothing if there is none."""
    return _pause(info.paused_until, info.paused_by).removeprefix("; ")


def _limit(use: RateUse) -> str:
    dimension = f" {visible(use.dimension)}" if use.dimension else ""
    return f"{use.limit}{dimension} per {period(use.per)}"


def _waited_for(amount: int, pause: bool) -> str:
    """The amount that is waited for; nothing in a pause, in which the queue does not show it."""
    return "" if pause else f", {amount} waited for"


def _pause(until: datetime | None, by: str | None) -> str:
    if until is None:
        return ""
    return f"; paused until {_clock(until)}" + (f" by {visible(by)}" if by else "")


def _until(until: datetime | None) -> Cell:
    return time_cell("-", None) if until is None else Cell(_clock(until), until.timestamp())


def _clock(at: datetime) -> str:
    """A moment by this host's clock, with its date if that is another day."""
    local = at.astimezone()
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d %H:%M}"
