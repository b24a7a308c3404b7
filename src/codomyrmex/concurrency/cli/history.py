"""``locks history``: the past holds of one lock or tree, from etcd's own history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import click

from codomyrmex.concurrency import History, PastHold, Session
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.completion import lock_names
from codomyrmex.concurrency.cli.duration_types import Age
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import history_table, output, text
from codomyrmex.concurrency.models import QueueKind
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.recipes.record_file import lines_of
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.past import read
from codomyrmex.concurrency.waitqueue.recorded import recorded

_KEPT = "; etcd keeps no hold that ended before a compaction; `record` keeps each in a file from now on"


@click.command(cls=Command)
@click.argument("name", shell_complete=lock_names)
@click.option("--tree", is_flag=True, is_eager=True, help="NAME is a tree: show the holds of its paths.")
@click.option("--since", type=Age(), metavar="1h", help="Only holds that ended in this time, or have not ended.")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read what `record` has written to FILE, and ask no etcd.",
)
@common_options
@click.pass_context
def history(context: click.Context, name: str, tree: bool, since: float | None, file: Path | None) -> None:
    """Show who held a lock, from when to when, and how each hold ended.

    It is read from etcd's own past, which begins at the last compaction: often minutes ago. The title says where.
    `record` keeps it for longer.

    etcd has no clock. The times are those that the holders recorded. `before 10:32:05` is a bound: the hold ended
    before another entry joined at that time. `?` is unknown. HELD `<5s` is bounded likewise.

    \b
    Examples:
      codomyrmex concurrency locks history deploy
      codomyrmex concurrency locks history deploy --since 1h -o jsonl
      codomyrmex concurrency locks history main --tree
      codomyrmex concurrency locks history deploy --from locks.jsonl
    """
    assert context.parent
    if context.parent.params["watch"]:
        raise click.UsageError("--watch follows what happens now; a history is of the past")
    kind: QueueKind = "path" if tree else "lock"
    run(_read(context, name, kind, since, file) if file else _ask(context, name, kind, since))


async def _ask(context: click.Context, name: str, kind: QueueKind, since: float | None) -> int:
    async with Session(settings(context)) as session:
        past, before = await read(core_of(session), name, kind)
    if past.begins_at == 1:
        return _show(context, past, since, "since revision 1 (whole)", where(context))
    beginning = f"since the compaction at revision {past.begins_at}"
    if before:
        beginning += f", before {history_table.moment(before)}"
    return _show(context, past, since, beginning, where(context), _KEPT)


async def _read(context: click.Context, name: str, kind: QueueKind, since: float | None, file: Path) -> int:
    try:
        past, gaps = recorded(lines_of(file), checked(name), kind)
    except ValueError as error:
        click.echo(f"error: {file}: {error}; give the file of `record`", err=True)
        return EXIT_FAILED
    beginning = f"since its record began at revision {past.begins_at}{history_table.missing(gaps)}"
    return _show(context, past, since, beginning, f"in {text.visible(str(file))}")


def _show(
    context: click.Context, past: History, since: float | None, beginning: str, where_it_is: str, kept: str = ""
) -> int:
    """Print the holds of a past, whose ``beginning`` and ``where_it_is`` are in words. ``kept`` says where older ones
    may be, if there is none."""
    if not past.holds and not past.waits:
        what = "a path of the tree" if past.kind == "path" else "the lock"
        hints = ("" if past.kind == "path" else "; for a tree, add --tree") + kept
        click.echo(
            f"error: nobody has held {what} {text.visible(past.name)} {where_it_is} {beginning}{hints}", err=True
        )
        return EXIT_FAILED
    rows = [hold for hold in past.holds if since is None or _may_have_ended_since(hold, since)]
    if output_format(context) not in ("table", "wide"):
        click.echo(f"note: the history of {text.visible(past.name)} is {beginning}", err=True)
    within = "" if since is None else f" in the last {text.span(since)}"
    none = f"no hold of {text.visible(past.name)} has ended{within}, {beginning}{kept}"
    output.show_list(context, rows, partial(history_table.holds, past, beginning), none)
    return 0 if rows else EXIT_FAILED


def _may_have_ended_since(hold: PastHold, since: float) -> bool:
    """False for a hold that is known to have ended more than ``since`` seconds ago."""
    ended = hold.ended_at or hold.ended_before
    return hold.how == "held" or ended is None or ended >= datetime.now(UTC) - timedelta(seconds=since)
