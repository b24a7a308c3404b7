"""How things look on a terminal: tables, ages, and untrusted text made harmless."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from codomyrmex.concurrency.models import ClusterStatus, LockEvent, LockInfo, Owner

_STYLES = {"granted": "green", "enqueued": "cyan", "released": "dim", "expired": "bold red"}


def console(context: click.Context) -> Console:
    """A console for stdout: colour only on a terminal, unless ``--color`` says otherwise; NO_COLOR is honoured."""
    wish = context.obj.get("color", "auto")
    if wish == "always":
        return Console(force_terminal=True, no_color=False)
    plain = wish == "never" or bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
    return Console(no_color=plain, width=None if sys.stdout.isatty() else 200, highlight=False)


def safe(text: object) -> Text:
    """``text`` as it may be shown: control, format and bidirectional characters become visible escapes."""
    return Text(visible(text))


def visible(text: object) -> str:
    return "".join(char if not _harmful(char) else char.encode("unicode_escape").decode() for char in str(text))


def _harmful(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def age(since: datetime | None) -> str:
    """How long ago, as ``7s``, ``3m12s`` or ``2h05m``; by this host's clock against the owner's."""
    if since is None:
        return "?"
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    hours, minutes = seconds // 3600, seconds // 60
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


def owner(one: Owner) -> str:
    """Where an entry comes from, for plain text; in a table it goes through ``safe``, for rich would read markup."""
    return f"{visible(one.host)}:{one.pid}" if one.host else f"session {one.session}"


def print_json(value: Any, *, lines: bool = False) -> None:
    """The JSON form of a model, or of a list of them; with ``lines`` one a line."""
    from codomyrmex.concurrency.models import to_json

    if lines:
        for item in value if isinstance(value, list) else [value]:
            print(json.dumps(to_json(item)), flush=True)  # noqa: T201
    else:
        print(json.dumps(to_json(value), indent=2), flush=True)  # noqa: T201


def locks_table(infos: Iterable[LockInfo], *, wide: bool = False) -> Table:
    """One row a lock: its holder, token, age and waiters."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("LOCK", "HOLDER", "TASK", "TOKEN", "AGE", "WAITERS"):
        table.add_column(column, justify="right" if column in ("TOKEN", "AGE") else "left", overflow="fold")
    if wide:
        table.add_column("SESSION")
        table.add_column("METADATA", overflow="fold")
    for info in infos:
        holder = info.holders[0]
        waiting = ", ".join(owner(waiter) for waiter in info.waiters[:3])
        more = f" +{len(info.waiters) - 3}" if len(info.waiters) > 3 else ""
        row = [safe(text) for text in (info.name, owner(holder), holder.task, holder.token, age(holder.since))]
        row.append(safe(f"{len(info.waiters)}: {waiting}{more}" if info.waiters else "-"))
        if wide:
            row += [safe(holder.session), safe(json.dumps(holder.metadata) if holder.metadata else "-")]
        table.add_row(*row)
    return table


def queue_table(info: LockInfo) -> Table:
    """The whole queue of one lock."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(visible(info.name)), title_justify="left")
    for column in ("#", "STATE", "OWNER", "TASK", "TOKEN", "SINCE", "SESSION", "METADATA"):
        table.add_column(column, overflow="fold")
    members = [("holds", one) for one in info.holders] + [("waits", one) for one in info.waiters]
    for number, (state, one) in enumerate(members):
        metadata = json.dumps(one.metadata) if one.metadata else "-"
        cells = (number, state, owner(one), one.task, one.token, age(one.since), one.session, metadata)
        table.add_row(*map(safe, cells), style="green" if state == "holds" else "")
    return table


def event_line(event: LockEvent) -> Text:
    """One event, one line."""
    line = Text(f"{event.at.astimezone():%H:%M:%S.%f}"[:-3] + "  ", style="dim")
    line.append(f"{event.kind:9}", style=_STYLES[event.kind])
    line.append(f"{visible(event.name)}  ", style="bold")
    line.append(f"token {event.owner.token}  {owner(event.owner)}  {visible(event.owner.task)}", style="none")
    return line


def status_table(status: ClusterStatus) -> Table:
    """One row an endpoint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ENDPOINT", "VERSION", "ROLE", "DB SIZE", "REVISION", "STATE"):
        table.add_column(column, overflow="fold")
    for member in status.members:
        role = "leader" if member.leader else "-" if member.error else "follower"
        state = member.error or "; ".join(member.errors) or "ok"
        size = f"{member.db_size / 1e6:.1f} MB"
        table.add_row(*map(safe, (member.endpoint, member.version, role, size, member.revision, state)))
    return table
