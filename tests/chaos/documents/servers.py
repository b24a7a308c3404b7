"""One etcd, or three, started from the binary itself, that can be killed, stopped, filled and started again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.documents.gateway import Gateway

BINARY = "CHAOS_ETCD_BINARY"
_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Between fork and exec: the kernel kills this process when its parent ends, however that ends."""
    _LIBC.prctl(1, signal.SIGKILL)


def binary(given: str | None = None) -> str:
    """The etcd to start: the one given, the one that the environment names, that of this environment, or PATH's."""
    beside = Path(sys.executable).parent / "etcd"
    found = given or os.environ.get(BINARY) or (str(beside) if beside.exists() else shutil.which("etcd"))
    if not found:
        raise FileNotFoundError(f"no etcd; name one in {BINARY}")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """One member, as a process."""

    def __init__(self, name: str, folder: Path, port: int, peer: int, arguments: Sequence[str], tls: bool) -> None:
        self.name, self.folder, self.arguments = name, folder, list(arguments)
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self.peer = f"http://127.0.0.1:{peer}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, members: Sequence[Server], program: str) -> None:
        command = [
            program,
            f"--name={self.name}",
            f"--data-dir={self.folder / self.name}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer}",
            f"--initial-advertise-peer-urls={self.peer}",
            "--initial-cluster=" + ",".join(f"{one.name}={one.peer}" for one in members),
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--unsafe-no-fsync",
            *self.arguments,
        ]
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; SIGSTOP makes it stand still until SIGCONT."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Servers:
    """The members of one cluster."""

    def __init__(self, members: list[Server], program: str, tls: ssl.SSLContext | None) -> None:
        self.members, self.program, self.tls = members, program, tls

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in self.members)

    def gateway(self, member: Server | None = None, timeout: float = 10.0) -> Gateway:
        return Gateway((member or self.members[0]).endpoint, self.tls, timeout)

    def start(self, member: Server) -> None:
        member.start(self.members, self.program)

    def ready(self, limit: float = 30.0) -> None:
        """Wait until each member answers a read that needs a leader."""
        deadline = time.monotonic() + limit
        for member in self.members:
            while True:
                with contextlib.suppress(OSError):
                    self.gateway(member, 2.0).revision()
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{member.name} does not answer after {limit} s")
                time.sleep(0.05)

    def leader(self) -> Server | None:
        """The member that the first one to answer takes for the leader."""
        for member in self.members:
            with contextlib.suppress(OSError):
                status = self.gateway(member, 2.0).call("maintenance/status")
                for other in self.members:
                    about = self.gateway(other, 2.0).call("maintenance/status")
                    if about["header"]["member_id"] == status["leader"]:
                        return other
        return None


@contextlib.contextmanager
def servers(
    count: int = 1, program: str | None = None, arguments: Sequence[str] = (), tls: ssl.SSLContext | None = None
) -> Iterator[Servers]:
    """A running cluster of ``count`` members; ``tls`` is what a client needs where ``arguments`` ask for TLS."""
    with tempfile.TemporaryDirectory(prefix="chaos-etcd-") as folder:
        ports = free_ports(2 * count)
        members = [
            Server(f"m{n}", Path(folder), ports[n], ports[count + n], arguments, tls is not None) for n in range(count)
        ]
        cluster = Servers(members, binary(program), tls)
        try:
            for member in members:
                cluster.start(member)
            cluster.ready()
            yield cluster
        finally:
            for member in members:
                member.kill()
