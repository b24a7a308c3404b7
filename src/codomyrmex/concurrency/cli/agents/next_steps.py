"""The commands that a message tells its reader to type next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence

import click

from codomyrmex.concurrency.cli.agents.agent import TREE
from codomyrmex.concurrency.cli.agents.wanted import Held
from codomyrmex.concurrency.cli.views.text import visible

_PROGRAM = ("codomyrmex", "concurrency")
_INHERITED = ("endpoints", "namespace")


def next_command(context: click.Context, *words: str, arguments: Sequence[str] = ()) -> str:
    """A command line of this agent, with the options that the present command was given."""
    agent = context.params.get("agent")
    given = [*connection_options(context), *(["--as", agent] if agent else [])]
    apart = ["--"] if any(argument.startswith("-") for argument in arguments) else []
    return _line([*_PROGRAM, *words, *given, *apart, *arguments])


def list_command(context: click.Context) -> str:
    """The command that lists the reservations of all agents."""
    return _line([*_PROGRAM, "reservations", *connection_options(context)])


def connection_options(context: click.Context) -> list[str]:
    """The options that say which etcd and which namespace, if the present command was given any."""
    return [word for name in _INHERITED if (value := context.obj.get(name)) for word in (f"--{name}", value)]


def reserve_command(context: click.Context, wanted: Held, *words: str) -> str:
    """The command that reserves ``wanted``, with further ``words``."""
    options = [word for path in wanted.paths for word in ("--path", path)]
    if wanted.paths and wanted.tree not in (None, TREE):
        options += ["--tree", wanted.tree]
    if wanted.shared:
        options.append("--shared")
    return next_command(context, "reserve", *options, *words, arguments=wanted.names)


def some_name(one: Held) -> tuple[str, ...]:
    """A name or a path by which ``renew`` and ``release`` find a reservation."""
    return (one.names or one.paths)[:1]


def _line(words: Iterable[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word of a command line. One with hidden characters becomes ``$'…'`` with escapes, which stay as they are when
    the line is shown, and which bash and zsh read."""
    if visible(word) == word:
        return shlex.quote(word)
    plain = os.fsencode(word).decode("latin-1")  # a character for each byte
    escaped = re.sub(r"[^ -&(-\[\]-~]", lambda found: f"\\x{ord(found[0]):02x}", plain)
    return f"$'{escaped}'"
