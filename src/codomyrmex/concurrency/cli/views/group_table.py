"""Groups on the screen: a table with one row a member, and one line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.cli.views.cells import time_cell
from codomyrmex.concurrency.cli.views.election_table import as_json
from codomyrmex.concurrency.cli.views.grid import Column, Grid
from codomyrmex.concurrency.cli.views.owners import agent, metadata, owner
from codomyrmex.concurrency.cli.views.text import age, count, seconds_since, stamp, visible
from codomyrmex.concurrency.models import Member, MemberEvent

_COLUMNS = (
    Column("GROUP", least=20, name=True),
    Column("MEMBER"),
    Column("AGENT", 2, least=8),
    Column("CAPABILITIES", 1, least=20),
    Column("MEMBER FOR", right=True),
)
_WIDE = (*_COLUMNS, Column("TOKEN", 4, right=True), Column("SESSION", 5), Column("METADATA", 6, least=16))
_EVENTS = {"joined": "green", "changed": "cyan", "left": "bold red"}


def members(found: Sequence[Member], *, wide: bool = False) -> Grid:
    """One row a member: its process, its capabilities, and for how long it has been one."""
    grid = Grid(_WIDE if wide else _COLUMNS)
    for member in found:
        one = member.owner
        since = time_cell(age(one.since), None if one.since is None else seconds_since(one.since))
        cells = [member.group, owner(one), agent(one), as_json(member.capabilities), since]
        grid.add(*cells, *([member.token, one.session, metadata(one)] if wide else []))
    groups = len({member.group for member in found})
    grid.foot = f"{count(len(found), 'member')} of {count(groups, 'group')}"
    return grid


def member_line(event: MemberEvent) -> Text:
    """One change on one line."""
    member, one = event.member, event.member.owner
    line = stamp(datetime.now(UTC)).append(f"{event.kind:9}", style=_EVENTS[event.kind])
    line.append(f"{visible(member.group)}  ", style="bold")
    named = agent(one)
    line.append(f"{owner(one)}{'' if named == '-' else '  ' + visible(named)}", style="none")
    return line.append(f"  {as_json(member.capabilities)}", style="none")
