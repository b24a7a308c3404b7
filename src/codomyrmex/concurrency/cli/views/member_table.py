"""The members of the etcd cluster: a table with one row an endpoint."""

from __future__ import annotations

from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid
from codomyrmex.concurrency.models import ClusterStatus

_COLUMNS = (
    Column("ENDPOINT"),
    Column("VERSION", 1),
    Column("ROLE", 2),
    Column("DB SIZE", 3, right=True),
    Column("REVISION", 4, right=True),
    Column("STATE", least=20),
)


def members(found: ClusterStatus) -> Grid:
    """One row an endpoint: version, role, size and state of the member that answers there."""
    grid = Grid(_COLUMNS)
    for member in found.members:
        role = "leader" if member.leader else "-" if member.error else "follower"
        state = member.error or "; ".join(member.errors) or "ok"
        size = Cell(f"{member.db_size / 1e6:.1f} MB", member.db_size)
        grid.add(member.endpoint, member.version, role, size, member.revision, state)
    return grid
