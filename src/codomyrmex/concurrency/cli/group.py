"""``codomyrmex concurrency``: the group and its commands, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from codomyrmex.concurrency.cli.options import common_options

_COMMANDS = ("demo", "dev", "locks", "run", "status")


class _Lazy(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"codomyrmex.concurrency.cli.{name}"), name)
        return command


@click.group(cls=_Lazy)
@click.version_option(package_name="codomyrmex-concurrency")
@common_options
def concurrency() -> None:
    """Distributed locks for fleets of agents, on etcd.

    \b
    See it work:           codomyrmex concurrency demo
    Who holds what, live:  codomyrmex concurrency locks --watch
    Hold a lock for a command:
        codomyrmex concurrency run --lock deploy -- ./deploy.sh

    etcd is found through --endpoints or CODOMYRMEX_ETCD_ENDPOINTS. Exit codes: 0 done, 1 failed or not found,
    2 usage, 69 etcd unreachable, 75 not acquired in time, 76 lock lost.
    """
