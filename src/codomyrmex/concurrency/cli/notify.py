"""The socket by which a command reports progress to ``run --max-idle``: the protocol of ``sd_notify``.

A message is a datagram with lines ``KEY=VALUE``. ``WATCHDOG=1`` and ``STATUS=TEXT`` report progress, the latter with a
note; other lines are passed over. ``systemd-notify`` and the libraries for systemd's watchdog speak it.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import click

from codomyrmex.concurrency import EtcdError, FencedWriteRejected, Grant
from codomyrmex.concurrency.waitqueue.progress import MAX_NOTE

_SHORTEST_PAUSE = 1.0  # seconds between two reports to etcd, or a tenth of max_idle if that is less


@asynccontextmanager
async def reports(
    grants: Sequence[Grant], max_idle: float | None, environment: Mapping[str, str]
) -> AsyncIterator[dict[str, str]]:
    """Report to ``grants`` the progress that a command reports; gives the environment for the command.

    Without ``max_idle`` there is no socket, so that a command under systemd keeps systemd's own.
    """
    if max_idle is None:
        yield dict(environment)
        return
    with tempfile.TemporaryDirectory(prefix="codomyrmex-") as folder:
        path = str(Path(folder, "notify"))
        received = _Received()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: received, local_addr=path, family=socket.AF_UNIX
        )
        forwarding = asyncio.create_task(_forward(received, grants, min(_SHORTEST_PAUSE, max_idle / 10)))
        ours = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(int(max_idle * 1e6))}
        try:
            # WATCHDOG_PID names another process than the command.
            yield {**{name: text for name, text in environment.items() if name != "WATCHDOG_PID"}, **ours}
        finally:
            transport.close()
            forwarding.cancel()
            await asyncio.gather(forwarding, return_exceptions=True)


class _Received(asyncio.DatagramProtocol):
    """The messages that have come: if there is a new one, and the last note."""

    def __init__(self) -> None:
        self.new = asyncio.Event()
        self.note = ""

    def datagram_received(self, data: bytes, addr: object) -> None:
        note = note_in(data)
        if note is not None:
            self.note = note or self.note
            self.new.set()


async def _forward(received: _Received, grants: Sequence[Grant], pause: float) -> None:
    while True:
        await received.new.wait()
        received.new.clear()
        try:
            for grant in grants:
                await grant.progress(received.note)
        except FencedWriteRejected:
            return  # ``run`` is told of the loss, and ends the command
        except EtcdError as error:
            click.echo(f"warning: progress of the command is not recorded: {error}", err=True)
        await asyncio.sleep(pause)


def note_in(message: bytes) -> str | None:
    """The note of a message that reports progress, "" if it has none; None if the message reports no progress."""
    lines = message.decode(errors="backslashreplace").splitlines()
    notes = [line.removeprefix("STATUS=") for line in lines if line.startswith("STATUS=")]
    if not notes and "WATCHDOG=1" not in lines:
        return None
    return "".join(notes[-1:]).encode()[:MAX_NOTE].decode(errors="ignore")
