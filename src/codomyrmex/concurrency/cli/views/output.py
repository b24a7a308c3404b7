"""Output in the form that ``-o`` names: a table, JSON or names; with colour only where it is wanted."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich.console import Console, RenderableType

from codomyrmex.concurrency.cli.options import output_format
from codomyrmex.concurrency.cli.views.text import visible


def console(context: click.Context) -> Console:
    """A console for stdout. It has colour on a terminal, unless ``--color`` or NO_COLOR says otherwise."""
    wish = context.obj.get("color", "auto")
    if wish == "always":
        return Console(force_terminal=True, no_color=False)
    plain = wish == "never" or bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
    return Console(no_color=plain, width=None if sys.stdout.isatty() else 200, highlight=False)


def print_json(value: Any, *, lines: bool = False) -> None:
    """Print the JSON form of a model or of a list of models; with ``lines``, one model a line."""
    from codomyrmex.concurrency.models import to_json  # here, for it needs pydantic, and --help must be fast

    if lines:
        for item in value if isinstance(value, list) else [value]:
            print(json.dumps(to_json(item)), flush=True)  # noqa: T201
    else:
        print(json.dumps(to_json(value), indent=2), flush=True)  # noqa: T201


def show(context: click.Context, value: Any, draw: Callable[[Any], RenderableType], name: str = "") -> None:
    """Print one model. Its name, for ``-o name``, is ``name``, or its attribute of that name when left out."""
    form = output_format(context)
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
    names: Callable[[Any], Iterable[str]] = lambda value: (value.name,),
) -> None:
    """Print several models, or ``otherwise`` on stderr if there are none. ``-o name`` prints the ``names`` of each, one
    a line."""
    form = output_format(context)
    if form in ("json", "jsonl"):
        print_json(list(values), lines=form == "jsonl")
    elif form == "name":
        for value in values:
            for name in names(value):
                click.echo(visible(name))
    elif values:
        console(context).print(draw(values, wide=form == "wide"), crop=False)
    else:
        click.echo(otherwise, err=True)
