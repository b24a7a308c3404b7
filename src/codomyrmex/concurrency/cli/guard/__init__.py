"""``guard``: the group of commands that keep edits and commits to reserved paths."""

from __future__ import annotations

import click

from codomyrmex.concurrency.cli.command_classes import Group
from codomyrmex.concurrency.cli.guard.check import check
from codomyrmex.concurrency.cli.guard.install import install
from codomyrmex.concurrency.cli.options import common_options


@click.group(cls=Group)
@common_options
def guard() -> None:
    """Refuse edits and commits of paths that this agent has not reserved.

    \b
    Examples:
      codomyrmex concurrency guard check src/parser/lexer.py
      codomyrmex concurrency guard install
    """


for _command in (check, install):
    guard.add_command(_command)
