"""Everything on record about one dead letter: its facts, its attempts and its traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from codomyrmex.concurrency import DeadLetter
from codomyrmex.concurrency.cli.views.dead_letter_table import due, error_of, tries
from codomyrmex.concurrency.cli.views.text import MOST, age, safe, short, visible


def dead_letter(entry: DeadLetter) -> RenderableType:
    """The whole page."""
    parts: list[RenderableType] = [_facts(_rows(entry))]
    if entry.attempts:
        parts.append(_attempts(entry))
    if entry.traceback:
        lines = "\n".join(visible(line) for line in entry.traceback.splitlines())
        parts.append(Text(f"\n{lines}", style="dim"))
    return Group(*parts)


def _rows(entry: DeadLetter) -> dict[str, str]:
    return {
        "id": entry.id,
        "operation": entry.operation,
        "state": f"{entry.state}{f': {entry.reason}' if entry.reason else ''}",
        "due": due(entry),
        "created": f"{entry.created_at.astimezone():%c}, {age(entry.created_at)} ago",
        "attempts": f"{tries(entry)}, of which {entry.crash_count} killed their worker",
        "fingerprint": entry.fingerprint,
        "error": error_of(entry),
        "args": json.dumps(entry.args),
        "metadata": json.dumps(entry.metadata),
    }


def _facts(rows: Mapping[str, str]) -> Table:
    table = _table("", "", show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), safe(value))
    return table


def _attempts(entry: DeadLetter) -> Table:
    table = _table("#", "HOST", "AGE", "OUTCOME", "ERROR", title="\nattempts", title_justify="left")
    for one in entry.attempts:
        host = f"{short(one.host, MOST)}:{one.pid}"
        cells = (one.number, host, age(one.time), one.outcome, short(one.error, 120))
        table.add_row(*map(safe, cells))
    return table


def _table(*columns: str, **more: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **more)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
