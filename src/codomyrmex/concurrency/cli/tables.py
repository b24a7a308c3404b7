"""What is shown of locks, semaphores, pools, dead letters and the cluster: tables, and one line for each event."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from codomyrmex.concurrency.cli.grid import Cell, Column, Grid, count, cut
from codomyrmex.concurrency.cli.views import (
    age,
    agent,
    held,
    held_for,
    owner,
    safe,
    short,
    span,
    visible,
    waited_for,
)

if TYPE_CHECKING:
    from codomyrmex.concurrency.dead_letters.record import DeadLetter
    from codomyrmex.concurrency.dead_letters.stats import OperationSummary
    from codomyrmex.concurrency.models import ClusterStatus, LockEvent, LockInfo, Owner, SemaphoreInfo
    from codomyrmex.concurrency.pool.cluster import ClusterPoolStats
    from codomyrmex.concurrency.pool.results import PoolStats

_EVENTS = {"granted": "green", "enqueued": "cyan", "released": "dim", "expired": "bold red"}
_WORDS = {  # what stands out, by its word and by its colour
    "parked": "bold red",
    "overdue": "bold yellow",
    "stuck": "bold yellow",
    "lost": "bold red",
    "holds": "green",
    "full": "cyan",
    "waiting": "cyan",
}
_STATES = {"waiting": "cyan", "running": "green", "parked": "bold red", "resolved": "dim"}
_SHOWN = 3  # owners in a cell
_LATE = 5.0  # seconds after which a due dead letter is one that nobody takes
_STUCK = 300.0  # seconds for which others have waited for one holder
_TEXT = 512  # characters of a text in a table; as JSON it is whole


def _table(*columns: str, right: Sequence[str] = (), **more: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **more)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _owners(owners: Sequence[Owner]) -> str:
    """The first of them, by their agents' names where they have some; several of one name are counted."""
    if not owners:
        return "-"
    named = Counter(owner(one) if agent(one) == "-" else agent(one) for one in owners)
    said = [name if number == 1 else f"{number} of {name}" for name, number in named.items()]
    more = f" +{len(said) - _SHOWN}" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more


def _metadata(one: Owner) -> str:
    return short(json.dumps(one.metadata), _TEXT) if one.metadata else "-"


def _time(text: str, seconds: float | None) -> Cell:
    """A time as it is shown, sorted by its seconds; what is not known comes last."""
    return Cell(text, -1.0 if seconds is None else seconds)


def _state(word: str) -> Cell:
    return Cell(word, style=_WORDS.get(word, ""))


def longest(info: LockInfo | SemaphoreInfo) -> float | None:
    """For how many seconds its longest hold has lasted, as far as that is known."""
    return max((seconds for one in info.holders if (seconds := held(one)) is not None), default=None)


def lock_state(info: LockInfo) -> str:
    """``lost``: its holder died and ``lock_delay`` keeps it closed. ``stuck``: others have waited for this holder for
    minutes."""
    if any(one.lost for one in info.holders):
        return "lost"
    return "stuck" if _stuck(info) else "held"


def _stuck(info: LockInfo | SemaphoreInfo) -> bool:
    waits = [_seconds(one.since) for one in info.waiters if one.since]
    return bool(waits) and min(max(waits), longest(info) or 0.0) > _STUCK


def _seconds(since: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


def locks(infos: Sequence[LockInfo], *, wide: bool = False, note: str = "") -> Grid:
    """One row a lock: its first holder, for how long it has been held and was waited for, and who waits."""
    columns = [
        Column("LOCK", least=20, name=True),
        Column("STATE", 2),
        Column("HOLDER"),
        Column("AGENT", 1, least=8),
        Column("TOKEN", 3, right=True),
        Column("HELD", right=True),
        Column("WAITED", 4, right=True),
        Column("WAITERS", 2, right=True),
        Column("NEXT", 5, least=12),
    ]
    grid = Grid([*columns, Column("SESSION", 6), Column("METADATA", 7, least=16)] if wide else columns)
    for info in infos:
        first = info.holders[0]
        readers = f" +{count(len(info.holders) - 1, 'reader')}" if len(info.holders) > 1 else ""
        state, seconds = lock_state(info), longest(info)
        row = [info.name, _state(state), owner(first) + readers, agent(first), first.token]
        row += [_time(held_for(first), seconds), _time(waited_for(first), first.waited)]
        row += [len(info.waiters), _owners(info.waiters)]
        if wide:
            row += [first.session, _metadata(first)]
        grid.add(*row)
    waiting = sum(len(info.waiters) for info in infos)
    states = Counter(map(lock_state, infos))
    told = [f"{states[word]} {word}" for word in ("stuck", "lost") if states[word]]
    grid.foot = "; ".join(filter(None, [f"{count(len(infos), 'lock')}, {waiting} waiting", ", ".join(told), note]))
    return grid


def queue(name: str, holders: Sequence[Owner], waiters: Sequence[Owner], title: str = "") -> Grid:
    """The whole queue of one lock or semaphore. ``HELD`` counts from the grant, ``WAITED`` from joining: until the
    grant, or until now."""
    columns = [
        Column("#", 3, right=True),
        Column("STATE"),
        Column("OWNER"),
        Column("AGENT", 1, least=8),
        Column("TOKEN", 2, right=True),
        Column("HELD", right=True),
        Column("WAITED", right=True),
        Column("SESSION", 4),
        Column("METADATA", 5, least=16),
    ]
    if any(one.permits > 1 for one in (*holders, *waiters)):
        columns.insert(2, Column("PERMITS", 1, right=True))
    grid = Grid(columns, title=title or name)
    for number, one in enumerate((*holders, *waiters)):
        holds = number < len(holders)
        state = "lost" if one.lost else "holds" if holds else "waits"
        waited = waited_for(one) if holds else age(one.since)
        row: list[object] = [number, Cell(f"{state} (reader)" if one.shared else state, style=_WORDS.get(state, ""))]
        if columns[2].title == "PERMITS":
            row.append(one.permits)
        row += [owner(one), agent(one), one.token]
        row += [_time(held_for(one), held(one)) if holds else "-"]
        row += [_time(waited, one.waited if holds or one.since is None else _seconds(one.since))]
        grid.add(*row, one.session, _metadata(one), style="green" if holds else "")
    grid.foot = f"{len(holders)} hold, {len(waiters)} wait"
    return grid


def lock_event(event: LockEvent) -> Text:
    """One event, one line."""
    one = event.owner
    line = _stamp(event.at)
    line.append(f"{event.kind:9}", style=_EVENTS[event.kind])
    line.append(f"{visible(event.name)}  ", style="bold")
    named = agent(one)
    line.append(f"token {one.token}  {owner(one)}{'' if named == '-' else '  ' + visible(named)}", style="none")
    if event.kind == "granted" and one.waited is not None:
        line.append(f"  waited {span(one.waited)}", style="none")
    elif event.kind != "enqueued" and one.granted_at is not None:
        line.append(f"  held {span((event.at - one.granted_at).total_seconds())}", style="none")
    return line


def semaphore_state(info: SemaphoreInfo) -> str:
    """``stuck``: its limit is gone, or the first that waits wants more than the limit, or has waited for minutes."""
    if info.limit is None or any(one.permits > info.limit for one in info.waiters[:1]) or _stuck(info):
        return "stuck"
    return "free" if info.available and not info.waiters else "full"


def semaphores(infos: Sequence[SemaphoreInfo], *, wide: bool = False) -> Grid:
    """One row a semaphore: its limit, how much of it is held, who holds and who waits."""
    grid = Grid(
        [
            Column("SEMAPHORE", least=20, name=True),
            Column("STATE", 1),
            Column("LIMIT", right=True),
            Column("HELD", right=True),
            Column("FREE", right=True),
            Column("WAITERS", right=True),
            Column("HELD FOR", 2, right=True),
            Column("HOLDERS", 3, least=20),
            Column("NEXT", 4, least=12),
        ]
    )
    for info in infos:
        permits = sum(one.permits for one in info.holders)
        holding = ", ".join(map(owner, info.holders)) if wide and info.holders else _owners(info.holders)
        seconds = longest(info)
        lasting = span(seconds) if seconds is not None else "?" if info.holders else "-"
        limit: object = "?" if info.limit is None else info.limit
        row = [info.name, _state(semaphore_state(info)), limit, permits]
        grid.add(*row, info.available, len(info.waiters), _time(lasting, seconds), holding, _owners(info.waiters))
    held_all = sum(one.permits for info in infos for one in info.holders)
    waiting = sum(len(info.waiters) for info in infos)
    stuck = sum(semaphore_state(info) == "stuck" for info in infos)
    said = f"{count(len(infos), 'semaphore')}, {count(held_all, 'permit')} held, {waiting} waiting"
    grid.foot = f"{said}; {stuck} stuck" if stuck else said
    return grid


def semaphore(info: SemaphoreInfo) -> Grid:
    """The whole queue of one semaphore, under its figures."""
    permits = sum(one.permits for one in info.holders)
    title = f"{info.name}: {permits} of {info.limit} permits held, {len(info.waiters)} wait"
    return queue(info.name, info.holders, info.waiters, title)


def semaphore_line(info: SemaphoreInfo) -> Text:
    """A semaphore after a change, on one line."""
    held = sum(one.permits for one in info.holders)
    line = _stamp(datetime.now(UTC)).append(f"{visible(info.name)}  ", style="bold")
    return line.append(f"{held} of {info.limit} held by {_owners(info.holders)}; {len(info.waiters)} wait")


_POOL = (
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
_POOL_WIDE = (*_POOL, Column("STARTED", 8, right=True), Column("INSTANCE", 8))


def pools(found: Sequence[ClusterPoolStats], *, wide: bool = False) -> Grid:
    """One row a pool instance, and the sum where a pool has several."""
    grid = Grid(_POOL_WIDE if wide else _POOL)
    for pool in found:
        if len(pool.instances) > 1:
            where = f"{len(pool.instances)} on {len(pool.hosts)} hosts" if len(pool.hosts) > 1 else "together"
            blank = [Cell("", -1.0)] * (len(grid.columns) - 2 - len(_figures(pool)))
            grid.add(pool.name, where, *_figures(pool), *blank, style="bold")
        for one in pool.instances:
            times = (one.p50_ms, one.p95_ms, one.p99_ms, one.loop_lag_ms)
            row = [pool.name, f"{short(one.host, _TEXT)}:{one.pid}", *_figures(one)]
            row += [Cell(f"{time:.1f}", time) for time in times]
            if wide:
                row += [_time(age(one.started_at), _seconds(one.started_at)), short(one.instance, _TEXT)]
            grid.add(*row)
    figures = [sum(getattr(pool, name) for pool in found) for name in ("running", "waiting", "queued", "failed")]
    running, waiting, queued, failed = figures
    grid.foot = f"{count(len(found), 'pool')}: {running - waiting} running, {waiting} waiting, {queued} queued"
    grid.foot += f", {failed} failed" if failed else ""
    return grid


def pool_state(pool: ClusterPoolStats | PoolStats) -> str:
    """``waiting``: no task works, for all that have begun wait. ``busy``: every worker has a task."""
    if pool.running and pool.running == pool.waiting:
        return "waiting"
    return "idle" if not pool.running else "busy" if pool.running >= pool.max_workers else "working"


def _figures(pool: ClusterPoolStats | PoolStats) -> list[object]:
    ended = [pool.completed, pool.failed, pool.timed_out, pool.cancelled, pool.dead_lettered]
    begun = [pool.max_workers, pool.running - pool.waiting, pool.waiting, pool.queued]
    return [_state(pool_state(pool)), *begun, *ended, Cell(f"{pool.throughput:.1f}", pool.throughput)]


def pool_line(pool: ClusterPoolStats) -> Text:
    """A pool after a change, on one line."""
    line = _stamp(datetime.now(UTC)).append(f"{visible(pool.name)}  ", style="bold")
    if not pool.instances:
        return line.append("gone")
    busy = f"{len(pool.instances)} instances, {pool.running} of {pool.max_workers} busy"
    busy += f" ({pool.waiting} of them wait), {pool.queued} queued" if pool.waiting else f", {pool.queued} queued"
    ended = f"{pool.completed} done, {pool.failed} failed, {pool.dead_lettered} dead letters"
    return line.append(f"{busy}; {ended}; {pool.throughput:.1f} a second")


def dead_letter_state(entry: DeadLetter) -> str:
    """Its state, in a word; ``overdue``: it waits, it is due, and no worker takes it."""
    return "overdue" if entry.state == "waiting" and _left(entry) < -_LATE else entry.state


def dead_letters(entries: Sequence[DeadLetter], *, wide: bool = False) -> Grid:
    """One row an entry."""
    columns = [
        Column("ID"),
        Column("OPERATION", 1, least=16, name=True),
        Column("STATE"),
        Column("ATTEMPTS", 4, right=True),
        Column("CRASHES", 5, right=True),
        Column("DUE", 5),
        Column("AGE", 3, right=True),
        Column("ERROR", 2, least=20),
    ]
    if wide:
        columns += [Column("ARGS", 6, least=16), Column("FINGERPRINT", 7)]
    grid = Grid(columns)
    for entry in entries:
        said = entry.reason if entry.state in ("parked", "resolved") and entry.reason else _error(entry)
        row: list[object] = [entry.id, short(entry.operation, _TEXT), _state(dead_letter_state(entry))]
        row += [tries(entry), entry.crash_count, Cell(due(entry), -_left(entry))]
        row += [_time(age(entry.created_at), _seconds(entry.created_at)), cut(said, 200)]
        if wide:
            row += [cut(json.dumps(entry.args), 200), short(entry.fingerprint, _TEXT)]
        grid.add(*row, style=_STATES[entry.state])
    states = Counter(map(dead_letter_state, entries))
    told = ", ".join(f"{states[word]} {word}" for word in ("parked", "overdue", "running", "waiting") if states[word])
    grid.foot = f"{count(len(entries), 'dead letter')}{': ' if told else ''}{told}"
    return grid


def dead_letter(entry: DeadLetter) -> RenderableType:
    """Everything there is to know of one entry."""
    facts = _table("", "", show_header=False)
    rows = {
        "id": entry.id,
        "operation": entry.operation,
        "state": f"{entry.state}{f': {entry.reason}' if entry.reason else ''}",
        "due": due(entry),
        "created": f"{entry.created_at.astimezone():%c}, {age(entry.created_at)} ago",
        "attempts": f"{tries(entry)}, of which {entry.crash_count} killed their worker",
        "fingerprint": entry.fingerprint,
        "error": _error(entry),
        "args": json.dumps(entry.args),
        "metadata": json.dumps(entry.metadata),
    }
    for name, value in rows.items():
        facts.add_row(Text(name, style="bold"), safe(value))
    parts: list[RenderableType] = [facts]
    if entry.attempts:
        history = _table("#", "HOST", "AGE", "OUTCOME", "ERROR", title="\nattempts", title_justify="left")
        for one in entry.attempts:
            cells = (
                one.number,
                f"{short(one.host, _TEXT)}:{one.pid}",
                age(one.time),
                one.outcome,
                short(one.error, 120),
            )
            history.add_row(*map(safe, cells))
        parts.append(history)
    if entry.traceback:
        lines = "\n".join(visible(line) for line in entry.traceback.splitlines())
        parts.append(Text(f"\n{lines}", style="dim"))
    return Group(*parts)


def dead_letter_line(entry: DeadLetter) -> Text:
    """An entry after a change, on one line."""
    line = _stamp(datetime.now(UTC)).append(f"{entry.state:9}", style=_STATES[entry.state])
    line.append(f"{visible(entry.operation)}  ", style="bold")
    return line.append(f"{visible(entry.id)}  attempt {entry.attempt_count}  {short(_error(entry), 100)}", style="none")


def tries(entry: DeadLetter) -> str:
    """The number of tries: in its queue and, if it comes from a pool, in the pool before."""
    before = entry.metadata.get("attempts") if "pool" in entry.metadata else None
    return f"{entry.attempt_count}, {before} in pool" if isinstance(before, int) else str(entry.attempt_count)


def due(entry: DeadLetter) -> str:
    """When an entry is retried, or that nobody takes it."""
    if entry.state != "waiting" or entry.next_attempt_at is None:
        return "-"
    left = _left(entry)
    if left > 0:
        return f"in {span(left)}"
    return "now" if left > -_LATE else f"for {span(-left)}; no worker takes it"


def _left(entry: DeadLetter) -> float:
    """Seconds until it is due; below 0 since then."""
    return (entry.next_attempt_at - datetime.now(UTC)).total_seconds() if entry.next_attempt_at else 0.0


def summaries(found: Sequence[OperationSummary], *, wide: bool = False) -> Grid:
    """One row an operation of a queue."""
    columns = [Column("QUEUE", 1, least=10, name=True), Column("OPERATION", least=16, name=True)]
    columns += [Column(title, right=True) for title in ("WAITING", "RUNNING", "PARKED")]
    columns += [Column(title, rank, right=True) for title, rank in (("RESOLVED", 3), ("KINDS", 4), ("OLDEST", 3))]
    grid = Grid(columns)
    for one in found:
        counts = (one.waiting, one.running, Cell(str(one.parked), one.parked, _WORDS["parked"] if one.parked else ""))
        oldest = _time("-", None) if one.oldest is None else _time(age(one.oldest), _seconds(one.oldest))
        row = (one.queue, short(one.operation, _TEXT), *counts, one.resolved, one.fingerprints, oldest)
        grid.add(*row, style="red" if one.parked else "")
    parked, waiting = sum(one.parked for one in found), sum(one.waiting for one in found)
    grid.foot = f"{count(len(found), 'operation')}: {parked} parked, {waiting} waiting"
    return grid


def summary_line(one: OperationSummary) -> Text:
    """An operation's figures after a change, on one line."""
    line = _stamp(datetime.now(UTC)).append(f"{visible(one.queue)} {visible(one.operation)}  ", style="bold")
    counts = f"{one.waiting} waiting, {one.running} running, {one.parked} parked, {one.resolved} resolved"
    return line.append(counts)


def status(found: ClusterStatus) -> Grid:
    """One row an endpoint."""
    columns = (Column("ENDPOINT"), Column("VERSION", 1), Column("ROLE", 2), Column("DB SIZE", 3, right=True))
    grid = Grid([*columns, Column("REVISION", 4, right=True), Column("STATE", least=20)])
    for member in found.members:
        role = "leader" if member.leader else "-" if member.error else "follower"
        state = member.error or "; ".join(member.errors) or "ok"
        size = Cell(f"{member.db_size / 1e6:.1f} MB", member.db_size)
        grid.add(member.endpoint, member.version, role, size, member.revision, state)
    return grid


def _stamp(at: datetime) -> Text:
    return Text(f"{at.astimezone():%H:%M:%S.%f}"[:-3] + "  ", style="dim")


def _error(entry: DeadLetter) -> str:
    return f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
