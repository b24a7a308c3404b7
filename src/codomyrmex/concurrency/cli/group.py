"""``codomyrmex concurrency``: the group and its commands, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from codomyrmex.concurrency.cli.command_classes import Group
from codomyrmex.concurrency.cli.options import common_options

# The summaries stand here too, so that the list of commands needs none of them imported.
_COMMANDS = {
    "capabilities": "Commands, options, exit codes and JSON schemas, for programs.",
    "demo": "Show a fleet at work: locks, a semaphore, pools, dead letters.",
    "dev": "Start an etcd for development, alone or around a command.",
    "dlq": "Dead letters: list, retry, discard, purge; run a worker.",
    "elections": "Leaders of all elections and their values, also live; end a term.",
    "guard": "Refuse edits and commits of paths without a reservation.",
    "locks": "Holders, waiters and tokens of all locks, also live; their past; release by force.",
    "members": "Members of all groups and their capabilities, also live.",
    "pools": "Every worker pool of the fleet, per host; also live.",
    "rates": "Limits and use of all rate limiters, also live; resize, pause, resume, delete.",
    "record": "Append every step of locks to a file, for longer than etcd keeps its history.",
    "release": "Give reservations of this agent back.",
    "renew": "Renew reservations of this agent.",
    "reservations": "All reservations: owners, notes and time left, also live.",
    "reserve": "Reserve names and paths beyond the life of this process.",
    "run": "Run a command while holding locks or a permit, or at a limited rate.",
    "semaphores": "Limits, holders and waiters of all semaphores, also live; resize, delete.",
    "status": "Health of the etcd cluster; exits with 1 if anything is wrong.",
}
_AGENTS = {"release", "renew", "reservations", "reserve"}  # in agents/


class _Lazy(Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        home = f"agents.{name}" if name in _AGENTS else name
        command: click.Command = getattr(import_module(f"codomyrmex.concurrency.cli.{home}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy)
@click.version_option(package_name="codomyrmex-concurrency", message="%(package)s %(version)s")
@common_options
def concurrency() -> None:
    """Locks, semaphores, elections, rate limits, worker pools and dead letters for fleets of agents, on etcd.

    \b
    See it work:           codomyrmex concurrency demo
    See holders, live:     codomyrmex concurrency locks --watch
    Hold a lock for a command:
        codomyrmex concurrency run --lock deploy -- ./deploy.sh
    Hold a path from one call of an agent to the next:
        codomyrmex concurrency reserve --path src/parser/

    etcd is found through --endpoints or CODOMYRMEX_ETCD_ENDPOINTS. Exit codes: 0 done, 1 failed or not found,
    2 usage, 69 etcd unreachable, 75 not acquired in time, 76 lock lost, 77 not reserved.
    """
