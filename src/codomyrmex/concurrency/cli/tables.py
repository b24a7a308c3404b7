"""What is shown of locks, semaphores, pools, dead letters and the cluster: tables, and one line for each event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from codomyrmex.concurrency.cli.views import age, owner, safe, short, span, visible

if TYPE_CHECKING:
    from codomyrmex.concurrency.dead_letters.record import DeadLetter
    from codomyrmex.concurrency.dead_letters.summary import OperationSummary
    from codomyrmex.concurrency.fleet import ClusterPoolStats
    from codomyrmex.concurrency.models import ClusterStatus, LockEvent, LockInfo, Owner, SemaphoreInfo
    from codomyrmex.concurrency.pool.results import PoolStats

_EVENTS = {"granted": "green", "enqueued": "cyan", "released": "dim", "expired": "bold red"}
_STATES = {"waiting": "cyan", "running": "green", "parked": "bold red", "resolved": "dim"}
_SHOWN = 3  # owners in a cell
_LATE = 5.0  # seconds after which a due dead letter is one that nobody takes
_MOST = 500  # rows of a table
_TEXT = 512  # characters of a text in a table; as JSON it is whole


def _table(*columns: str, right: Sequence[str] = (), **more: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **more)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _owners(owners: Sequence[Owner]) -> str:
    if not owners:
        return "-"
    more = f" +{len(owners) - _SHOWN}" if len(owners) > _SHOWN else ""
    return ", ".join(owner(one) for one in owners[:_SHOWN]) + more


def _metadata(one: Owner) -> str:
    return short(json.dumps(one.metadata), _TEXT) if one.metadata else "-"


def locks(infos: Iterable[LockInfo], *, wide: bool = False) -> Table:
    """One row a lock: its first holder, token, age and waiters."""
    table = _table(
        "LOCK", "HOLDER", "TASK", "TOKEN", "AGE", "WAITERS", *(("SESSION", "METADATA") if wide else ()), right=_NUMBERS
    )
    for info in infos:
        holder = info.holders[0]
        readers = f" +{len(info.holders) - 1} readers" if len(info.holders) > 1 else ""
        waiting = f"{len(info.waiters)}: {_owners(info.waiters)}" if info.waiters else "-"
        task = short(holder.task, _TEXT)
        row = [info.name, owner(holder) + readers, task, holder.token, age(holder.since), waiting]
        if wide:
            row += [holder.session, _metadata(holder)]
        table.add_row(*map(safe, row))
    return table


def queue(name: str, holders: Sequence[Owner], waiters: Sequence[Owner], title: str = "") -> Table:
    """The whole queue of one lock or semaphore."""
    members = [("holds", one) for one in holders] + [("waits", one) for one in waiters]
    weighted = any(one.permits > 1 for _, one in members)
    columns = ["#", "STATE", "OWNER", "TASK", "TOKEN", "SINCE", "SESSION", "METADATA"]
    if weighted:
        columns.insert(2, "PERMITS")
    table = _table(*columns, title=Text(visible(title or name)), title_justify="left")
    for number, (state, one) in enumerate(members):
        said = f"{state} (reader)" if one.shared else state
        cells = [
            number,
            said,
            owner(one),
            short(one.task, _TEXT),
            one.token,
            age(one.since),
            one.session,
            _metadata(one),
        ]
        if weighted:
            cells.insert(2, one.permits)
        table.add_row(*map(safe, cells), style="green" if state == "holds" else "")
    return table


def lock_event(event: LockEvent) -> Text:
    """One event, one line."""
    line = _stamp(event.at)
    line.append(f"{event.kind:9}", style=_EVENTS[event.kind])
    line.append(f"{visible(event.name)}  ", style="bold")
    line.append(
        f"token {event.owner.token}  {owner(event.owner)}  {visible(short(event.owner.task, _TEXT))}", style="none"
    )
    return line


def semaphores(infos: Iterable[SemaphoreInfo], *, wide: bool = False) -> Table:
    """One row a semaphore: its limit, how much of it is held, who holds and who waits."""
    table = _table("SEMAPHORE", "LIMIT", "HELD", "FREE", "HOLDERS", "WAITERS", right=_NUMBERS)
    for info in infos:
        held = sum(one.permits for one in info.holders)
        waiting = f"{len(info.waiters)}: {_owners(info.waiters)}" if info.waiters else "-"
        limit = "?" if info.limit is None else info.limit
        holding = ", ".join(map(owner, info.holders)) if wide and info.holders else _owners(info.holders)
        table.add_row(*map(safe, (info.name, limit, held, info.available, holding, waiting)))
    return table


def semaphore(info: SemaphoreInfo) -> Table:
    """The whole queue of one semaphore, under its figures."""
    held = sum(one.permits for one in info.holders)
    title = f"{info.name}: {held} of {info.limit} permits held, {len(info.waiters)} wait"
    return queue(info.name, info.holders, info.waiters, title)


def semaphore_line(info: SemaphoreInfo) -> Text:
    """A semaphore after a change, on one line."""
    held = sum(one.permits for one in info.holders)
    line = _stamp(datetime.now(UTC)).append(f"{visible(info.name)}  ", style="bold")
    return line.append(f"{held} of {info.limit} held by {_owners(info.holders)}; {len(info.waiters)} wait")


_POOL = ("WORKERS", "RUNNING", "QUEUED", "DONE", "FAILED", "TIMEOUT", "CANCELLED", "DEAD LETTERS", "PER SECOND")
_POOL_TIMES = ("P50 ms", "P95 ms", "P99 ms", "LAG ms")
_NUMBERS = ("TOKEN", "AGE", "LIMIT", "HELD", "FREE", *_POOL, *_POOL_TIMES)


def pools(found: Iterable[ClusterPoolStats], *, wide: bool = False) -> Table:
    """One row a pool instance, and the sum where a pool has several."""
    columns = ["POOL", "WHERE", *_POOL, *_POOL_TIMES, *(("STARTED", "INSTANCE") if wide else ())]
    table = _table(*columns, right=_NUMBERS)
    for pool in found:
        if len(pool.instances) > 1:
            where = f"{len(pool.instances)} on {len(pool.hosts)} hosts" if len(pool.hosts) > 1 else "together"
            blank = [""] * (len(columns) - 2 - len(_POOL))
            table.add_row(*map(safe, (pool.name, where, *_figures(pool), *blank)), style="bold")
        for one in pool.instances:
            times = (one.p50_ms, one.p95_ms, one.p99_ms, one.loop_lag_ms)
            row = [pool.name, f"{short(one.host, _TEXT)}:{one.pid}", *_figures(one), *(f"{time:.1f}" for time in times)]
            if wide:
                row += [age(one.started_at), short(one.instance, _TEXT)]
            table.add_row(*map(safe, row))
    return table


def _figures(pool: ClusterPoolStats | PoolStats) -> list[object]:
    ended = [pool.completed, pool.failed, pool.timed_out, pool.cancelled, pool.dead_lettered]
    return [pool.max_workers, pool.running, pool.queued, *ended, f"{pool.throughput:.1f}"]


def pool_line(pool: ClusterPoolStats) -> Text:
    """A pool after a change, on one line."""
    line = _stamp(datetime.now(UTC)).append(f"{visible(pool.name)}  ", style="bold")
    if not pool.instances:
        return line.append("gone")
    busy = f"{len(pool.instances)} instances, {pool.running} of {pool.max_workers} busy, {pool.queued} queued"
    ended = f"{pool.completed} done, {pool.failed} failed, {pool.dead_lettered} dead letters"
    return line.append(f"{busy}; {ended}; {pool.throughput:.1f} a second")


def dead_letters(entries: Sequence[DeadLetter], *, wide: bool = False) -> RenderableType:
    """One row an entry."""
    table = _table(
        *("ID", "OPERATION", "STATE", "ATTEMPTS", "CRASHES", "DUE", "AGE", "ERROR"),
        *(("ARGS", "FINGERPRINT") if wide else ()),
        right=("ATTEMPTS", "CRASHES", "AGE"),
    )
    for entry in entries[:_MOST]:
        said = entry.reason if entry.state in ("parked", "resolved") and entry.reason else _error(entry)
        row = [entry.id, short(entry.operation, _TEXT), entry.state, tries(entry), entry.crash_count, due(entry)]
        row += [age(entry.created_at), short(said, 200 if wide else 60)]
        if wide:
            row += [short(json.dumps(entry.args), 200), short(entry.fingerprint, _TEXT)]
        table.add_row(*map(safe, row), style=_STATES[entry.state])
    if len(entries) > _MOST:
        return Group(table, Text(f"and {len(entries) - _MOST} more", style="dim"))
    return table


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
    """How often it was tried: in its queue and, if it comes from a pool, in that before."""
    before = entry.metadata.get("attempts") if "pool" in entry.metadata else None
    return f"{entry.attempt_count}, {before} in pool" if isinstance(before, int) else str(entry.attempt_count)


def due(entry: DeadLetter) -> str:
    """When an entry is retried, or that nobody takes it."""
    if entry.state != "waiting" or entry.next_attempt_at is None:
        return "-"
    left = (entry.next_attempt_at - datetime.now(UTC)).total_seconds()
    if left > 0:
        return f"in {span(left)}"
    return "now" if left > -_LATE else f"for {span(-left)}; no worker takes it"


def summaries(found: Iterable[OperationSummary], *, wide: bool = False) -> Table:
    """One row an operation of a queue."""
    columns = ("QUEUE", "OPERATION", "WAITING", "RUNNING", "PARKED", "RESOLVED", "KINDS", "OLDEST")
    table = _table(*columns, right=columns[2:])
    for one in found:
        counts = (one.waiting, one.running, one.parked, one.resolved, one.fingerprints)
        oldest = "-" if one.oldest is None else age(one.oldest)
        style = "bold red" if one.parked else ""
        table.add_row(*map(safe, (one.queue, short(one.operation, _TEXT), *counts, oldest)), style=style)
    return table


def summary_line(one: OperationSummary) -> Text:
    """An operation's figures after a change, on one line."""
    line = _stamp(datetime.now(UTC)).append(f"{visible(one.queue)} {visible(one.operation)}  ", style="bold")
    counts = f"{one.waiting} waiting, {one.running} running, {one.parked} parked, {one.resolved} resolved"
    return line.append(counts)


def status(found: ClusterStatus) -> Table:
    """One row an endpoint."""
    table = _table("ENDPOINT", "VERSION", "ROLE", "DB SIZE", "REVISION", "STATE")
    for member in found.members:
        role = "leader" if member.leader else "-" if member.error else "follower"
        state = member.error or "; ".join(member.errors) or "ok"
        size = f"{member.db_size / 1e6:.1f} MB"
        table.add_row(*map(safe, (member.endpoint, member.version, role, size, member.revision, state)))
    return table


def _stamp(at: datetime) -> Text:
    return Text(f"{at.astimezone():%H:%M:%S.%f}"[:-3] + "  ", style="dim")


def _error(entry: DeadLetter) -> str:
    return f"{entry.error_type}: {entry.error}" if entry.error_type else entry.error
