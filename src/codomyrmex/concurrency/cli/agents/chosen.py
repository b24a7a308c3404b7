"""The steps that ``renew`` and ``release`` share: find the kept reservations by name, use each, tell the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, NamedTuple

import click

from codomyrmex.concurrency import ConcurrencyError, LockLost, LockManager, Reservation, Session
from codomyrmex.concurrency.cli.agents.agent import agent_of, need_a_server
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
from codomyrmex.concurrency.cli.agents.kept import Kept, opened
from codomyrmex.concurrency.cli.agents.next_steps import list_command, reserve_command
from codomyrmex.concurrency.cli.agents.obstacles import obstacles
from codomyrmex.concurrency.cli.agents.outcomes import Holder, KeptOutcome
from codomyrmex.concurrency.cli.agents.wanted import Wanted, named
from codomyrmex.concurrency.cli.options import namespace, output_format, settings
from codomyrmex.concurrency.cli.running import EXIT_LOST, run
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views import reservation_text as text
from codomyrmex.concurrency.cli.views.text import visible


class Step(NamedTuple):
    """A step to take on each reservation, and the state that it is in then."""

    state: Literal["renewed", "released"]
    take: Callable[[Reservation], Awaitable[object]]


def kept_names(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the names and paths of the reservations that the agent keeps. Offers nothing if they cannot be read."""
    context.ensure_object(dict)
    try:
        store = HandleStore(settings(context).namespace, agent_of(context.params.get("agent")))
        found = {name for one in store.all(warn=False) for name in (*one.names, *one.paths)}
    except Exception:  # a prompt is not the place for an error message
        return []
    return sorted(name for name in found if name.startswith(incomplete) and name.isprintable())


def on_chosen(context: click.Context, given: str | None, names: Sequence[str], everything: bool, step: Step) -> None:
    """Take ``step`` on the kept reservations of ``names``, or on all, and exit; with 76 if one was lost."""
    need_a_server(context)
    if bool(names) == everything:
        raise click.UsageError("give a NAME, or --all")
    run(_on_chosen(context, agent_of(given), names, step))


async def _on_chosen(context: click.Context, agent: str, names: Sequence[str], step: Step) -> int:
    store = HandleStore(settings(context).namespace, agent)
    chosen = _chosen(context, agent, store.all(), names)
    outcomes = []
    if chosen:
        async with Session(settings(context)) as session:
            for one in opened(LockManager(session), chosen):
                outcomes.append(await _outcome(context, agent, session, store, one, step))
    _show(context, outcomes, f"{agent} keeps no reservations in {namespace(context)}")
    return EXIT_LOST if any(one.state == "lost" for one in outcomes) else 0


def _chosen(context: click.Context, agent: str, kept: list[KeptHandle], names: Sequence[str]) -> list[KeptHandle]:
    """The reservations that ``names`` are of; all if there are no names. Raises an error for a name of none."""
    for name in names:
        if not named(kept, name):
            known = "; ".join(map(text.scope, kept)) or "none at all"
            raise ConcurrencyError(
                f"{agent} keeps no reservation of {name!r} here for {namespace(context)}; it keeps {known}. "
                f"To see all: {list_command(context)}"
            )
    return [one for one in kept if not names or any(named([one], name) for name in names)]


async def _outcome(
    context: click.Context, agent: str, session: Session, store: HandleStore, one: Kept, step: Step
) -> KeptOutcome:
    try:
        await one.use(store, step.take)
    except LockLost as error:
        wanted = Wanted(one.names, one.paths, one.handle.tree, one.shared)
        holders = (await obstacles(session, wanted)).holders
        return _told(one, agent, "lost", str(error), holders, (reserve_command(context, one),))
    if step.state == "released":
        store.drop(one.handle)
    return _told(one, agent, step.state)


def _told(
    one: Kept,
    agent: str,
    state: Literal["renewed", "released", "lost"],
    reason: str = "",
    held_by: tuple[Holder, ...] = (),
    following: tuple[str, ...] = (),
) -> KeptOutcome:
    return KeptOutcome(
        state=state,
        agent=agent,
        names=one.names,
        paths=one.paths,
        tree=one.tree,
        token=one.reservation.token,
        expires_in=one.reservation.expires_in() if state == "renewed" else 0.0,
        reason=reason,
        held_by=held_by,
        next=following,
    )


def _show(context: click.Context, outcomes: list[KeptOutcome], otherwise: str) -> None:
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(outcomes, lines=form == "jsonl")
        return
    for one in outcomes:
        if one.state == "lost":
            click.echo("\n".join(_loss(one)), err=True)
        elif form == "name":
            click.echo("\n".join(map(visible, (*one.names, *one.paths))))
        else:
            time = f" for {text.left(one.expires_in)}" if one.state == "renewed" else ""
            click.echo(f"{one.state}: {text.scope(one)}{time}, token {one.token}")
    if not outcomes and form != "name":
        click.echo(otherwise, err=True)


def _loss(one: KeptOutcome) -> list[str]:
    lost = f"lost: {text.scope(one)}: {visible(one.reason)}"
    return [lost, *text.holders(one.held_by), *text.following(one.next)]
