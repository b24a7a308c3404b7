"""The classes of our commands and groups. They add three things to click's:

- a misspelt command is answered with the most likely one,
- an argument may begin with a minus and a digit,
- a group of named things shows one of them when it is given its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import click


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of an error about ``name``: the most likely of the ``known`` names, or nothing."""
    begun = [one for one in known if len(name) > 1 and one.startswith(name)]
    likely = begun or get_close_matches(name, known)
    return f" Did you mean {likely[0]!r}?" if likely else ""


class Command(click.Command):
    """A command that takes words like ``-5`` as arguments. None of its options begins with a digit."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(context, list(args))
        except click.NoSuchOption as error:
            if not re.match(r"-\d", error.option_name):
                raise
        context.ignore_unknown_options = True  # any other unknown option would have been refused first
        return super().parse_args(context, args)


class Group(Command, click.Group):
    """A group that answers a misspelt command with the most likely one."""

    command_class = Command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(context, args[0]) is None and not context.resilient_parsing:
            known = self.list_commands(context)
            if args[0] in known:
                context.fail(f"The command {args[0]!r} is installed, but cannot be loaded.")
            context.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], known)}")
        return super().resolve_command(context, args)


class NamedGroup(Group):
    """A group for which ``GROUP NAME`` is short for ``GROUP show NAME``."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        meant_a_command = len(args) > 1 and not args[1].startswith("-") and did_you_mean(args[0], list(self.commands))
        if args[0] not in self.commands and not meant_a_command:
            args = ["show", *args]
        return super().resolve_command(context, args)
