"""How anything is put out: on a terminal or off it, as JSON or as text, with what others wrote made harmless."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.text import Text

from codomyrmex.concurrency.cli.options import output
from codomyrmex.concurrency.legible import legible

if TYPE_CHECKING:
    from codomyrmex.concurrency.models import Owner


_UNNAMED = re.compile(r"Task-\d+")


def console(context: click.Context) -> Console:
    """A console for stdout: colour only on a terminal, unless ``--color`` says otherwise; NO_COLOR is honoured."""
    wish = context.obj.get("color", "auto")
    if wish == "always":
        return Console(force_terminal=True, no_color=False)
    plain = wish == "never" or bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
    return Console(no_color=plain, width=None if sys.stdout.isatty() else 200, highlight=False)


def safe(text: object) -> Text:
    """``text`` as it may be shown: what is hidden in it, or could steer a terminal, becomes a visible escape."""
    return Text(visible(text))


def visible(text: object) -> str:
    return legible(str(text))


def short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def age(since: datetime | None) -> str:
    """How long ago, as ``7s``, ``3m12s`` or ``2h05m``; by this host's clock against the owner's."""
    if since is None:
        return "?"
    return span((datetime.now(UTC) - since).total_seconds())


def span(length: float) -> str:
    """Seconds, as ``age`` shows them."""
    seconds = max(0, int(length))
    hours, minutes = seconds // 3600, seconds // 60
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


def held(one: Owner) -> float | None:
    """For how many seconds it has been held; None where its holder has not told and nobody saw it granted."""
    if one.granted_at is None:
        return None
    return max(0.0, (datetime.now(UTC) - one.granted_at).total_seconds())


def held_for(one: Owner) -> str:
    """The same, for people: ``?`` where it is not known. What joined a moment ago cannot have been held for longer."""
    seconds = held(one)
    if seconds is not None:
        return span(seconds)
    just_joined = one.since is not None and 0 <= (datetime.now(UTC) - one.since).total_seconds() < 1
    return "<1s" if just_joined else "?"


def waited_for(one: Owner) -> str:
    """For how long a holder had waited when it was granted; ``?`` where that is not known."""
    return "?" if one.waited is None else span(one.waited)


def agent(one: Owner) -> str:
    """The name by which an entry's owner goes: its metadata's ``agent``, else a name that somebody gave its task."""
    named = one.metadata.get("agent")
    if isinstance(named, str) and named.strip():
        return short(named, 100)
    return "-" if not one.task or _UNNAMED.fullmatch(one.task) else short(one.task, 100)


def owner(one: Owner) -> str:
    """Where an entry comes from, for plain text; in a table it goes through ``safe``, for rich would read markup."""
    return f"{visible(short(one.host, 100))}:{one.pid}" if one.host else f"session {one.session}"


def print_json(value: Any, *, lines: bool = False) -> None:
    """The JSON form of a model, or of a list of them; with ``lines`` one a line."""
    from codomyrmex.concurrency.models import to_json

    if lines:
        for item in value if isinstance(value, list) else [value]:
            print(json.dumps(to_json(item)), flush=True)  # noqa: T201
    else:
        print(json.dumps(to_json(value), indent=2), flush=True)  # noqa: T201


def show(context: click.Context, value: Any, draw: Callable[[Any], RenderableType], name: str = "") -> None:
    """One thing in the form asked for."""
    form = output(context)
    if form in ("json", "jsonl"):
        print_json(value, lines=form == "jsonl")
    elif form == "name":
        click.echo(visible(name or value.name))
    else:
        console(context).print(draw(value), crop=False)


def show_list(
    context: click.Context,
    values: Sequence[Any],
    draw: Callable[..., RenderableType],
    otherwise: str,
    name: str = "name",
) -> None:
    """Several things in the form asked for; ``otherwise`` says that there are none."""
    form = output(context)
    if form in ("json", "jsonl"):
        print_json(list(values), lines=form == "jsonl")
    elif form == "name":
        for value in values:
            click.echo(visible(getattr(value, name)))
    elif values:
        console(context).print(draw(values, wide=form == "wide"), crop=False)
    else:
        click.echo(otherwise, err=True)
