"""Reservations and their holders in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Protocol

from codomyrmex.concurrency.cli.agents.outcomes import HeldReservation, Holder
from codomyrmex.concurrency.cli.views.text import MOST, age, short, span, visible

_SHOWN = 5  # names and paths on a line
_FIRST = 2  # names and paths in a cell
_MANY = 6  # paths of a command


class Scope(Protocol):
    """Names, and paths of a tree."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def tree(self) -> str | None: ...


def scope(one: Scope) -> str:
    """Names and paths on one line: ``deploy, src/parser/ and README.md in the tree main``."""
    paths = [path or "everything" for path in one.paths]
    in_tree = [f"{_listed(paths)} in the tree {visible(one.tree or '')}"] if paths else []
    return ", ".join([*([_listed(one.names)] if one.names else []), *in_tree])


def brief(one: Scope) -> str:
    """The first names and paths, and the number of the others."""
    texts = [*one.names, *(path or "(all)" for path in one.paths)]
    more = f" +{len(texts) - _FIRST}" if len(texts) > _FIRST else ""
    return ", ".join(short(text, 200) for text in texts[:_FIRST]) + more


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(visible(text) for text in texts[:_SHOWN]) + more


def holder(one: Holder) -> str:
    """A holder on one line: its agent, host, time, time left and note."""
    process = f"{visible(one.host)}:{one.pid}" if one.host else "another client of etcd"
    words = [f"{visible(one.agent)} ({process})" if one.agent else process]
    if one.since:
        words.append(f" for {age(one.since)}")
    words.append(f", {left(one.expires_in)} left" if one.expires_in is not None else ", until it releases")
    return "".join(words) + note(one.note)


def holders(several: Sequence[Holder], indent: str = "") -> list[str]:
    """A line for each holder in the way, with what it holds."""
    return [f"{indent}held: {scope(one)} by {holder(one)}" for one in several]


def note(text: str) -> str:
    """The end of a line that gives a note, or nothing."""
    return f", note: {visible(short(text, MOST))}" if text else ""


def following(commands: Sequence[str]) -> list[str]:
    """A line for each command to type next. It shows the first few paths; JSON has all."""
    return [f"next: {visible(_shortened(command))}" for command in commands]


def _shortened(command: str) -> str:
    words = shlex.split(command)
    paths = [n for n, word in enumerate(words) if word == "--path"]
    if len(paths) <= _MANY:
        return command
    return f"{shlex.join(words[: paths[_MANY]] + words[paths[-1] + 2 :])} …"


def left(seconds: float) -> str:
    """The time that is left, rounded up: ``15m00s`` just after a reservation of 15 minutes."""
    return span(seconds + 0.999)


def held(one: HeldReservation, agent: str) -> list[str]:
    """A reservation that was just made or renewed, and the note that a predecessor left."""
    word = "renewed, as held already" if one.renewed else "reserved"
    lines = [f"{word}: {scope(one)}, by {visible(agent)} for {left(one.expires_in)}, token {one.token}"]
    if one.left:
        by = f" by {visible(one.left_by)}" if one.left_by else ""
        lines.append(f"left{by}, whose reservation expired: {visible(short(one.left, MOST))}")
    return lines
