"""``codomyrmex``: a group that finds its sub-groups through the entry-point group ``codomyrmex.cli``."""

from __future__ import annotations

from importlib.metadata import entry_points

import click


class _Installed(click.Group):
    """Sub-groups of whatever codomyrmex distributions are installed, each loaded when it is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({point.name for point in entry_points(group="codomyrmex.cli")})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for point in entry_points(group="codomyrmex.cli", name=name):
            try:
                command: click.Command = point.load()
            except Exception as error:
                # One broken distribution must not take the others down.
                click.echo(f"warning: the command {name!r} cannot be loaded: {error}", err=True)
                return None
            return command
        return None


@click.group(cls=_Installed, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The command line of the codomyrmex modules that are installed."""


if __name__ == "__main__":
    main(prog_name="codomyrmex")
