"""An etcd cluster of real processes, whose members can be killed, stopped and started again."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd.embedded import find_etcd, is_free
from codomyrmex.concurrency.testing.fleet import Fleet, FleetProcess
from codomyrmex.concurrency.testing.gateway import call

_PORTS = range(20_000, 32_000)  # below the ports that systems hand out, so a port stays free while its member is down
_LIMIT = 30.0  # seconds
_INTERVAL = 0.05


class ClusterMember:
    """One member of a ``Cluster``. Its data stays in place until the cluster is closed."""

    def __init__(self, name: str, folder: Path, client: int, peer: int) -> None:
        self.name = name
        self.endpoint = f"http://127.0.0.1:{client}"
        self.process: FleetProcess | None = None
        self._data = folder / name
        self._peer = f"http://127.0.0.1:{peer}"

    def command(self, binary: str, members: Sequence[ClusterMember]) -> list[str]:
        """The command that starts it as one of ``members``."""
        return [
            binary,
            f"--name={self.name}",
            f"--data-dir={self._data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self._peer}",
            f"--initial-advertise-peer-urls={self._peer}",
            "--initial-cluster=" + ",".join(f"{member.name}={member._peer}" for member in members),
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--logger=zap",
            "--log-level=warn",
        ]

    def kill(self) -> None:
        """End it by SIGKILL, as a crash does. ``Cluster.start`` brings it back with its data."""
        self._running().kill()

    def stop(self) -> None:
        """Let it stand still, as a long pause or a lost network does, until ``resume``."""
        self._running().stop()

    def resume(self) -> None:
        """Let it go on after ``stop``."""
        self._running().resume()

    def _running(self) -> FleetProcess:
        if self.process is None:
            raise ValueError(f"{self.name} was not started; call Cluster.start")
        return self.process


class Cluster:
    """An etcd cluster on this machine: ``with Cluster() as cluster``. It also ends with this process.

    Args:
        members: the number of members.
        binary: the etcd to run; that of ``EmbeddedEtcd`` when left out.
    """

    def __init__(self, members: int = 3, *, binary: Path | str | None = None) -> None:
        self._binary = binary
        self._folder = tempfile.TemporaryDirectory(prefix="codomyrmex-cluster-", ignore_cleanup_errors=True)
        self._fleet = Fleet(_environment())
        ports = _free_ports(2 * members)
        folder = Path(self._folder.name)
        self.members = [ClusterMember(f"m{n}", folder, ports[2 * n], ports[2 * n + 1]) for n in range(members)]

    @property
    def endpoints(self) -> str:
        """The addresses of all members, as ``EtcdSettings`` takes them."""
        return ",".join(member.endpoint for member in self.members)

    def start(self, *members: ClusterMember) -> Cluster:
        """Start these members, or all, where they do not run, and wait until each of them knows a leader.

        Raises ``EtcdUnavailable`` with what etcd wrote, also where there is no etcd to start.
        """
        binary = str(self._binary or find_etcd())
        chosen = members or self.members
        for member in chosen:
            if member.process is None or member.process.returncode is not None:
                member.process = self._fleet.start(member.command(binary, self.members))
        deadline = time.monotonic() + _LIMIT
        for member in chosen:
            while not _leader_of(member):
                _check(member, deadline)
                time.sleep(_INTERVAL)
        return self

    def leader(self, limit: float = _LIMIT) -> ClusterMember:
        """The leader, on which all members agree that answer, more than half of all. Waits for an election.

        Raises ``EtcdUnavailable`` if there is none within ``limit`` seconds.
        """
        deadline = time.monotonic() + limit
        while True:
            known = [leader for member in self.members if (leader := _leader_of(member))]
            if len(known) > len(self.members) // 2 and len(set(known)) == 1:
                for member in self.members:
                    if _id_of(member) == known[0]:
                        return member
            if time.monotonic() > deadline:
                raise EtcdUnavailable(f"the cluster has no leader after {limit:g} s")
            time.sleep(_INTERVAL)

    def close(self) -> None:
        """Kill all members and remove their data."""
        self._fleet.close()
        self._folder.cleanup()

    def __enter__(self) -> Cluster:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(member: ClusterMember, deadline: float) -> None:
    """Raise ``EtcdUnavailable`` if a member that does not serve has ended, or takes too long."""
    assert member.process
    if member.process.returncode is not None or time.monotonic() > deadline:
        raise EtcdUnavailable(f"{member.name} at {member.endpoint} does not serve\n{member.process.errors[-2000:]}")


def _leader_of(member: ClusterMember) -> str:
    """The id of the leader that a member knows; empty if it knows none or does not answer."""
    leader = str(_status(member).get("leader", ""))
    return "" if leader == "0" else leader


def _id_of(member: ClusterMember) -> str:
    return str(_status(member).get("header", {}).get("member_id", ""))


def _status(member: ClusterMember) -> dict[str, dict[str, str]]:
    try:
        return call(member.endpoint, "maintenance/status", {}, 0.5)
    except OSError:
        return {}


def _environment() -> dict[str, str]:
    """This process's environment without the variables that would set options of etcd."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


def _free_ports(count: int) -> list[int]:
    chosen: set[int] = set()
    while len(chosen) < count:
        if is_free(port := random.choice(_PORTS)):
            chosen.add(port)
    return sorted(chosen)
