"""``guard check``: exits with 77 unless a live reservation of this agent covers each path."""

from __future__ import annotations

import os
from pathlib import Path

import click

from codomyrmex.concurrency import InvalidName, Session
from codomyrmex.concurrency.cli.agents.agent import agent_of, agent_option, need_a_server, tree_option
from codomyrmex.concurrency.cli.agents.next_steps import reserve_command
from codomyrmex.concurrency.cli.agents.obstacles import holders_in
from codomyrmex.concurrency.cli.agents.outcomes import GuardedPath, GuardOutcome
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.guard import git
from codomyrmex.concurrency.cli.guard.coverage import PathVerdict, judge
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
    """Exit with 0 if a live reservation of this agent covers each path, else with 77 and the holders.

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
    run(_check(context, agent_of(agent), paths, staged, tree))


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
    verdicts = []
    if paths:
        async with Session(settings(context)) as session:
            verdicts = judge(paths, agent, await holders_in(session, tree))
    missing = [one for one in verdicts if not one.covered]
    again = (reserve_command(context, _to_reserve(missing, tree)),) if missing else ()
    guarded = tuple(GuardedPath(one.path, one.covered, _reason(one), one.held_by) for one in verdicts)
    outcome = GuardOutcome(not missing, agent, tree, guarded, again)
    _show(context, outcome)
    return EXIT_NOT_RESERVED if missing else 0


def _to_reserve(missing: list[PathVerdict], tree: str) -> Wanted:
    return Wanted((), tuple(dict.fromkeys(one.reserve for one in missing)), tree, shared=False)


def _reason(one: PathVerdict) -> str:
    if one.covered:
        return ""
    if one.shared:
        return "this agent has reserved it as a reader only"
    return "held by others" if one.held_by else "not reserved"


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
        lines += [f"    held: {text.scope(holder)} by {text.holder(holder)}" for holder in one.held_by]
    if len(missing) > _SHOWN:
        lines.append(f"  and {len(missing) - _SHOWN} more; -o json has all")
    return lines + [f"next: {visible(command)}" for command in outcome.next]
