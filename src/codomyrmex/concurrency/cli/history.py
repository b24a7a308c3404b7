"""``locks history``: the past holds of one lock or tree, from etcd's own history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import click

from codomyrmex.concurrency import History, LockManager, PastHold, Session
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.completion import lock_names
from codomyrmex.concurrency.cli.duration_types import Age
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import history_table, output, text
from codomyrmex.concurrency.models import QueueKind


@click.command(cls=Command)
@click.argument("name", shell_complete=lock_names)
@click.option("--tree", is_flag=True, is_eager=True, help="NAME is a tree: show the holds of its paths.")
@click.option("--since", type=Age(), metavar="1h", help="Only holds that ended in this time, or have not ended.")
@common_options
@click.pass_context
def history(context: click.Context, name: str, tree: bool, since: float | None) -> None:
    """Show who held a lock, from when to when, and how each hold ended.

    It is read from etcd's own past, which begins at the last compaction. The title says where.

    etcd has no clock. The times are those that the holders recorded. `before 10:32:05` is a bound: the hold ended
    before another entry joined at that time. `?` is unknown. HELD `<5s` is bounded likewise.

    \b
    Examples:
      codomyrmex concurrency locks history deploy
      codomyrmex concurrency locks history deploy --since 1h -o jsonl
      codomyrmex concurrency locks history main --tree
    """
    assert context.parent
    if context.parent.params["watch"]:
        raise click.UsageError("--watch follows what happens now; a history is of the past")
    run(_history(context, name, "path" if tree else "lock", since))


async def _history(context: click.Context, name: str, kind: QueueKind, since: float | None) -> int:
    async with Session(settings(context)) as session:
        past = await LockManager(session).history(name, kind)
    if not past.holds and not past.waits:
        what = "a path of the tree" if kind == "path" else "the lock"
        hint = "" if kind == "path" else "; for a tree, add --tree"
        told = f"{where(context)} {history_table.beginning(past)}"
        click.echo(f"error: nobody has held {what} {text.visible(name)} {told}{hint}", err=True)
        return EXIT_FAILED
    rows = [hold for hold in past.holds if since is None or _may_have_ended_since(hold, since)]
    if output_format(context) not in ("table", "wide"):
        click.echo(f"note: the history of {text.visible(past.name)} is {history_table.beginning(past)}", err=True)
    output.show_list(context, rows, partial(history_table.holds, past), _none(past, since))
    return 0


def _may_have_ended_since(hold: PastHold, since: float) -> bool:
    """False for a hold that is known to have ended more than ``since`` seconds ago."""
    ended = hold.ended_at or hold.ended_before
    return hold.how == "held" or ended is None or ended >= datetime.now(UTC) - timedelta(seconds=since)


def _none(past: History, since: float | None) -> str:
    within = "" if since is None else f" in the last {text.span(since)}"
    return f"no hold of {text.visible(past.name)} has ended{within}, {history_table.beginning(past)}"
