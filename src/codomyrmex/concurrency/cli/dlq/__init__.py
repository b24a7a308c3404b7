"""``dlq``: the group of commands about dead letters."""

from __future__ import annotations

import click

from codomyrmex.concurrency.cli.command_classes import Group
from codomyrmex.concurrency.cli.dlq.discard import discard
from codomyrmex.concurrency.cli.dlq.entries import list_command, show
from codomyrmex.concurrency.cli.dlq.purge import purge
from codomyrmex.concurrency.cli.dlq.retry import retry
from codomyrmex.concurrency.cli.dlq.stats import stats
from codomyrmex.concurrency.cli.dlq.work import work
from codomyrmex.concurrency.cli.options import common_options


@click.group(cls=Group)
@common_options
def dlq() -> None:
    """Dead letters: operations that failed, kept until they are dealt with.

    \b
    Examples:
      codomyrmex concurrency dlq stats
      codomyrmex concurrency dlq list --state parked
      codomyrmex concurrency dlq retry --all --operation send_mail --rate 5
    """


for _command in (work, list_command, show, retry, discard, purge, stats):
    dlq.add_command(_command)
