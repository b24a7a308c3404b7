"""``guard check``: exits with 77 unless a live reservation of this agent covers each path."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import click

from codomyrmex.concurrency import InvalidName, LockManager, ReservationInfo, Session
from codomyrmex.concurrency.cli.agents.agent import acting_agent, agent_option, need_a_server, tree_option
from codomyrmex.concurrency.cli.agents.next_steps import next_command, reserve_command, some_name
from codomyrmex.concurrency.cli.agents.obstacles import holders_in
from codomyrmex.concurrency.cli.agents.outcomes import GuardedPath, GuardOutcome
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.guard import git
from codomyrmex.concurrency.cli.guard.coverage import PathVerdict, judge, to_reserve
from codomyrmex.concurrency.cli.options import common_options, output_format, settings
from codomyrmex.concurrency.cli.running import EXIT_NOT_RESERVED, run
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views import reservation_text as text
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.waitqueue.scopes import normalised

_SHOWN = 20  # paths of a message; JSON has them all


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())
@click.option("--staged", is_flag=True, help="The paths that `git commit` would change.")
@tree_option
@agent_option
@common_options
@click.pass_context
def check(context: click.Context, paths: tuple[str, ...], staged: bool, tree: str, agent: str | None) -> None:
    """Exit with 77 if this agent has not reserved each path.

    It tells the holders then. Only a live reservation counts.

    A path is relative to the root of the repository, from whatever directory; an absolute one must be below that
    root. A shared reservation covers nothing, for a reader does not write.

    With --staged, a deleted path counts, a renamed one counts as the old path and the new one, and a submodule is the
    path of its directory. Of a merge, only those paths count that differ from every parent.

    \b
    Examples:
      codomyrmex concurrency guard check src/parser/lexer.py
      codomyrmex concurrency guard check --staged -o json
    """
    need_a_server(context)
    if not paths and not staged:
        raise click.UsageError("give a PATH, or --staged")
    run(_check(context, acting_agent(agent), paths, staged, tree))


def _in_repository(path: str) -> str:
    """A path that a user gives, relative to the root of the repository."""
    if os.path.isabs(path):
        absolute = Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        top = git.root()
        if not absolute.is_relative_to(top):
            raise click.UsageError(f"{path} is outside of the repository {top}")
        path = str(absolute.relative_to(top)) if absolute != top else ""
    try:
        return normalised(path)
    except InvalidName as error:
        raise click.UsageError(str(error)) from None


async def _check(context: click.Context, agent: str, given: tuple[str, ...], staged: bool, tree: str) -> int:
    paths = [*map(_in_repository, given)] + (git.staged() if staged else [])
    if not paths:
        return _told(context, GuardOutcome(True, agent, tree, (), ()))
    async with Session(settings(context)) as session:
        reservations = await LockManager(session).reservations()
        holders = await holders_in(session, tree, reservations)
    mine = [one for one in reservations if one.owner == agent]
    verdicts = judge(paths, agent, holders)
    names = {name for one in mine for name in one.names}
    guarded = tuple(GuardedPath(one.path, one.covered, _reason(one, names), one.held_by) for one in verdicts)
    missing = [one for one in verdicts if not one.covered]
    following = _next(context, Wanted((), to_reserve(missing, holders), tree, shared=False), mine) if missing else ()
    return _told(context, GuardOutcome(not missing, agent, tree, guarded, following))


def _next(context: click.Context, wanted: Wanted, mine: Sequence[ReservationInfo]) -> tuple[str, ...]:
    """The commands that reserve ``wanted``: first the release of what this agent holds in its own way."""
    own = [name for one in mine if wanted.conflicts_with(one) for name in some_name(one)]
    release = [next_command(context, "release", arguments=own)] if own else []
    return (*release, reserve_command(context, wanted))


def _reason(one: PathVerdict, names: Collection[str]) -> str:
    """The reason why a path is not covered. ``names`` are those that the agent has reserved."""
    if one.covered:
        return ""
    if one.path in names and not one.shared and not one.held_by:
        return "this agent has reserved it as a name; a path of the tree takes --path"
    if one.shared:
        return "this agent has reserved it as a reader only"
    return "held by others" if one.held_by else "not reserved"


def _told(context: click.Context, outcome: GuardOutcome) -> int:
    """Print the result; returns the exit code."""
    _show(context, outcome)
    return 0 if outcome.covered else EXIT_NOT_RESERVED


def _show(context: click.Context, outcome: GuardOutcome) -> None:
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(outcome, lines=form == "jsonl")
        return
    missing = [one for one in outcome.paths if not one.covered]
    if form == "name":
        for one in missing:
            click.echo(visible(one.path))
    elif missing:
        click.echo("\n".join(_refusal(outcome, missing)), err=True)


def _refusal(outcome: GuardOutcome, missing: list[GuardedPath]) -> list[str]:
    lines = [f"not covered by a reservation of {visible(outcome.agent)} in the tree {visible(outcome.tree)}:"]
    for one in missing[:_SHOWN]:
        lines.append(f"  {visible(one.path or '(the whole tree)')}: {one.reason}")
        lines += text.holders(one.held_by, indent="    ")
    if len(missing) > _SHOWN:
        lines.append(f"  and {len(missing) - _SHOWN} more; -o json has all")
    return lines + text.following(outcome.next)
