"""A DNS server of our own, and a command's prefix that makes it the only one a process asks. Needs root on Linux."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.workers import WORKER

_ADDRESS = f"127.53.77.{1 + WORKER}"
_A = 1
_NO_SUCH_NAME = 3


class DnsServer(asyncio.DatagramProtocol):
    """Answers questions for IPv4 addresses from ``names``, to be remembered for 0 s; ``silent`` answers nothing."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.silent = False
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> DnsServer:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=(_ADDRESS, 53))
        return self

    def stop(self) -> None:
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport and not self.silent:
            self._transport.sendto(self._answer(data), addr)

    def _answer(self, asked: bytes) -> bytes:
        labels, at = [], 12
        while length := asked[at]:
            labels.append(asked[at + 1 : at + 1 + length].decode().lower())
            at += 1 + length
        (kind,) = struct.unpack_from("!H", asked, at + 1)
        question = asked[12 : at + 5]
        address = self.names.get(".".join(labels))
        record = b""
        if address and kind == _A:
            record = b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, 0, 4) + socket.inet_aton(address)
        flags = 0x8580 | (0 if address else _NO_SUCH_NAME)
        return asked[:2] + struct.pack("!HHHHH", flags, 1, 1 if record else 0, 0, 0) + question + record


def asking_it(folder: Path) -> tuple[str, ...]:
    """The words before a command that let it ask this server: a mount namespace with an ``/etc/resolv.conf``."""
    file = folder / "resolv.conf"
    file.write_text(f"nameserver {_ADDRESS}\n")
    return ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(file))


def missing() -> str | None:
    """The reason why this cannot be done here, or None."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return "a DNS of our own needs Linux and unshare"
    tried = subprocess.run(("unshare", "-m", "mount", "--bind", "/etc", "/etc"), capture_output=True, text=True)
    if tried.returncode:
        return f"mount namespaces are not permitted: {tried.stderr.strip()}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
            port.bind((_ADDRESS, 53))
    except OSError as error:
        return f"port 53 of {_ADDRESS} cannot be had: {error}"
    return None
