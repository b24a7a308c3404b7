"""Options that several ``dlq`` commands have."""

from __future__ import annotations

import click

from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.dlq.queues import DEFAULT

queue_option = click.option(
    "-q",
    "--queue",
    default=DEFAULT,
    show_default=True,
    metavar="NAME",
    shell_complete=names_of("dead letter queue"),
    help="Which queue.",
)
operation_option = click.option("--operation", metavar="NAME", help="Only entries of this operation.")
watch_option = click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done.")
