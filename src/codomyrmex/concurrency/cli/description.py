"""The description of a command line: plain data that ``capabilities`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command. ``many``: it may be repeated."""

    name: str
    required: bool
    many: bool


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command. ``value`` is what it takes, None for a flag; ``choices`` are the values that it may have,
    empty if it may have others."""

    names: tuple[str, ...]
    value: str | None
    choices: tuple[str, ...]
    default: str | None
    required: bool
    many: bool
    help: str


@dataclass(frozen=True, slots=True)
class CommandDescription:
    """A command. ``output`` and ``event`` are JSON schemas: of what it prints with ``-o json``, and of each line that
    it prints with ``--watch -o json``; None if it prints no JSON."""

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    exit_codes: tuple[int, ...]
    output: dict[str, Any] | None
    event: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The whole command line. ``exit_codes`` tells what each code means; ``schemas`` has the schemas by name."""

    version: str
    exit_codes: dict[int, str]
    commands: tuple[CommandDescription, ...]
    schemas: dict[str, Any]
