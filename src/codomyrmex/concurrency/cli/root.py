"""``codomyrmex``: a group that finds its sub-groups through the entry-point group ``codomyrmex.cli``."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import entry_points
from typing import Any

import click

from codomyrmex.concurrency.cli.command_classes import Group


class _Installed(Group):
    """The sub-groups of all installed codomyrmex distributions. Each is loaded when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({point.name for point in entry_points(group="codomyrmex.cli")})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for point in entry_points(group="codomyrmex.cli", name=name):
            try:
                command: click.Command = point.load()
            except Exception as error:
                # A broken distribution must not make the others unusable.
                click.echo(f"warning: the command {name!r} cannot be loaded: {error}", err=True)
                return None
            return command
        return None

    def invoke(self, context: click.Context) -> Any:
        """Run the command. Ctrl-C ends it as ``running.run`` does, also before that takes over."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


def _say_versions(context: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        found = {point.dist.name: point.dist.version for point in entry_points(group="codomyrmex.cli") if point.dist}
        for name in sorted(found):
            click.echo(f"{name} {found[name]}")
        context.exit()


@click.group(cls=_Installed, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_say_versions, help="Show what is installed."
)
def main() -> None:
    """The command line of the codomyrmex modules that are installed."""


if __name__ == "__main__":
    main(prog_name="codomyrmex")
