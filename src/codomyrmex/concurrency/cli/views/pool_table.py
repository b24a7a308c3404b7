"""Worker pools on the screen: a table with one row a pool instance, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import state_cell, time_cell
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.cli.views.text import MOST, age, count, seconds_since, short, stamp, visible
from codomyrmex.concurrency.pool.cluster import ClusterPoolStats
from codomyrmex.concurrency.pool.results import PoolStats

_COLUMNS = (
    Column("POOL", least=12, name=True),
    Column("WHERE", 1),
    Column("STATE", 4),
    Column("WORKERS", 5, right=True),
    Column("RUNNING", right=True),
    Column("WAITING", right=True),
    Column("QUEUED", right=True),
    Column("DONE", 2, right=True),
    Column("FAILED", 2, right=True),
    Column("TIMEOUT", 6, right=True),
    Column("CANCELLED", 6, right=True),
    Column("DEAD LETTERS", 6, right=True),
    Column("PER SECOND", 3, right=True),
    *(Column(title, 7, right=True) for title in ("P50 ms", "P95 ms", "P99 ms", "LAG ms")),
)
_WIDE = (*_COLUMNS, Column("STARTED", 8, right=True), Column("INSTANCE", 8))


def pools(found: Sequence[ClusterPoolStats], *, wide: bool = False) -> Grid:
    """One row a pool instance, and a row of sums for a pool that has several instances."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for pool in found:
        if len(pool.instances) > 1:
            _add_sums(grid, pool)
        for one in pool.instances:
            _add_instance(grid, pool.name, one, wide)
    figures = [sum(getattr(pool, name) for pool in found) for name in ("running", "waiting", "queued", "failed")]
    running, waiting, queued, failed = figures
    grid.foot = f"{count(len(found), 'pool')}: {running - waiting} running, {waiting} waiting, {queued} queued"
    grid.foot += f", {failed} failed" if failed else ""
    return grid


def _add_sums(grid: Grid, pool: ClusterPoolStats) -> None:
    where = f"{len(pool.instances)} on {len(pool.hosts)} hosts" if len(pool.hosts) > 1 else "together"
    figures = _figures(pool)
    blank = [Cell("", -1.0)] * (len(grid.columns) - 2 - len(figures))
    grid.add(pool.name, where, *figures, *blank, style="bold")


def _add_instance(grid: Grid, name: str, one: PoolStats, wide: bool) -> None:
    times = (one.p50_ms, one.p95_ms, one.p99_ms, one.loop_lag_ms)
    row = [name, f"{short(one.host, MOST)}:{one.pid}", *_figures(one)]
    row += [Cell(f"{time:.1f}", time) for time in times]
    if wide:
        row += [time_cell(age(one.started_at), seconds_since(one.started_at)), short(one.instance, MOST)]
    grid.add(*row)


def _figures(pool: ClusterPoolStats | PoolStats) -> list[object]:
    begun = [pool.max_workers, pool.running - pool.waiting, pool.waiting, pool.queued]
    ended = [pool.completed, pool.failed, pool.timed_out, pool.cancelled, pool.dead_lettered]
    return [state_cell(pool_state(pool)), *begun, *ended, Cell(f"{pool.throughput:.1f}", pool.throughput)]


def pool_state(pool: ClusterPoolStats | PoolStats) -> str:
    """The state of a pool in a word.

    ``waiting``: every task that has begun waits. ``busy``: every worker has a task. Else ``working`` or ``idle``.
    """
    if pool.running and pool.running == pool.waiting:
        return "waiting"
    return "idle" if not pool.running else "busy" if pool.running >= pool.max_workers else "working"


def pool_line(pool: ClusterPoolStats) -> Text:
    """A pool after a change, on one line."""
    line = stamp(datetime.now(UTC)).append(f"{visible(pool.name)}  ", style="bold")
    if not pool.instances:
        return line.append("gone")
    busy = f"{len(pool.instances)} instances, {pool.running} of {pool.max_workers} busy"
    busy += f" ({pool.waiting} of them wait), {pool.queued} queued" if pool.waiting else f", {pool.queued} queued"
    ended = f"{pool.completed} done, {pool.failed} failed, {pool.dead_lettered} dead letters"
    return line.append(f"{busy}; {ended}; {pool.throughput:.1f} a second")
