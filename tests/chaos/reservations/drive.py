"""Starting the processes of a run."""

from __future__ import annotations

import signal

from tests.chaos.documents.servers import die_with_parent


def begin() -> None:
    """Between fork and exec: die with the driver; SIGTERM waits until the process can end in order."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
