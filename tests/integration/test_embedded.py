"""The embedded etcd: serves, comes back with its data, and is gone when it should be, whatever happened to us."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd import embedded
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd, find_etcd
from tests.helpers import eventually

PARENT = """
import os, sys, time
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd
server = EmbeddedEtcd(binary=sys.argv[1] or None).start_sync()
print(server.pid, server.data_dir, flush=True)
"""


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.config.getoption("--etcd-binary")
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def serves(endpoint: str) -> bool:
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def ask(server: EmbeddedEtcd, path: str, **fields: str) -> Any:
    body = json.dumps({name: base64.b64encode(value.encode()).decode() for name, value in fields.items()})
    with urllib.request.urlopen(f"{server.endpoint}{path}", body.encode(), timeout=5) as answer:
        return json.load(answer)


def put(server: EmbeddedEtcd, key: str, value: str) -> None:
    ask(server, "/v3/kv/put", key=key, value=value)


def get(server: EmbeddedEtcd, key: str) -> str | None:
    found = ask(server, "/v3/kv/range", key=key).get("kvs")
    return base64.b64decode(found[0]["value"]).decode() if found else None


def parent(code: str, binary: str | None) -> tuple[subprocess.Popen[str], int, Path]:
    """Another process that runs an embedded etcd, its etcd's pid and its data directory."""
    command = [sys.executable, "-c", PARENT + code, binary or ""]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pid, data_dir = process.stdout.readline().split()
    return process, int(pid), Path(data_dir)


async def test_it_starts_serves_and_stops(binary: str | None) -> None:
    async with EmbeddedEtcd(binary=binary) as server:
        put(server, "key", "value")
        assert get(server, "key") == "value"
        assert server.version.startswith("3.")
        assert server.binary and server.data_dir and server.data_dir.is_dir()
        pid, data_dir = server.pid, server.data_dir
        assert await server.start() is server and server.pid == pid, "starting again starts no second one"
    assert not alive(pid) and not serves(server.endpoint) and not data_dir.exists()
    await server.stop()


async def test_an_address_is_used_as_it_is(binary: str | None) -> None:
    async with EmbeddedEtcd(binary=binary) as server:
        async with EmbeddedEtcd(address=server.endpoint) as known:
            assert (known.endpoint, known.version, known.pid) == (server.endpoint, server.version, 0)
            known.kill()
        assert serves(server.endpoint)


async def test_a_kill_keeps_port_and_data(binary: str | None) -> None:
    async with EmbeddedEtcd(binary=binary) as server:
        endpoint, pid = server.endpoint, server.pid
        put(server, "key", "value")
        server.kill()
        assert not alive(pid) and not serves(endpoint) and server.pid == 0
        await server.start()
        assert server.endpoint == endpoint and get(server, "key") == "value"
        await server.restart()
        assert server.endpoint == endpoint and get(server, "key") == "value"


async def test_an_etcd_that_died_by_itself_is_started_again(binary: str | None) -> None:
    async with EmbeddedEtcd(binary=binary) as server:
        endpoint, pid = server.endpoint, server.pid
        put(server, "key", "value")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(pid))
        await server.restart()
        assert server.pid not in (0, pid)
        assert server.endpoint == endpoint and get(server, "key") == "value"


async def test_a_data_dir_of_yours_is_kept(binary: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for turn in range(2):
        async with EmbeddedEtcd(binary=binary, data_dir=folder) as server:
            assert get(server, "key") == ("value" if turn else None)
            put(server, "key", "value")
            endpoint = server.endpoint
    await server.start()
    assert server.endpoint == endpoint and get(server, "key") == "value"
    await server.stop()


@pytest.mark.parametrize("end", ["KILL", "TERM", "INT"])
async def test_a_parent_that_is_killed_leaves_nothing(binary: str | None, end: str) -> None:
    # Its children, forked or not, live on and must not keep etcd alive.
    code = """
import subprocess
sleeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("ready", flush=True)
while True:
    time.sleep(0.05)  # a SIGINT that comes just before a sleep is noticed after it
"""
    process, pid, data_dir = parent(code, binary)
    assert process.stdout and process.stdout.readline() == "ready\n" and alive(pid)
    process.send_signal(signal.Signals[f"SIG{end}"])
    try:
        await eventually(lambda: not alive(pid))
        await eventually(lambda: not data_dir.parent.exists())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "code",
    [
        "server.kill(); os.kill(os.getpid(), 9)",
        "server.kill(); os.kill(os.getpid(), 15)",
        "server.kill()",
        "os.kill(server.pid, 9); time.sleep(0.5); os._exit(0)",
        "server.kill(); server.start_sync(); server.kill(); os._exit(0)",
    ],
)
async def test_a_parent_that_ends_after_its_etcd_was_killed_leaves_no_folder(binary: str | None, code: str) -> None:
    process, _, data_dir = parent(code, binary)
    process.communicate()
    await eventually(lambda: not data_dir.parent.exists())


async def test_one_that_is_forgotten_after_a_kill_leaves_no_folder(binary: str | None) -> None:
    server = await EmbeddedEtcd(binary=binary).start()
    assert server.data_dir
    folder = server.data_dir.parent
    server.kill()
    assert folder.exists()
    del server
    await eventually(lambda: gc.collect() >= 0 and not folder.exists())


@pytest.mark.parametrize("code", ["", "raise SystemExit(3)", "server = None; time.sleep(0.1)"])
async def test_a_parent_that_ends_without_stopping_leaves_nothing(binary: str | None, code: str) -> None:
    process, pid, data_dir = parent(code, binary)
    process.communicate()
    assert not alive(pid) and not data_dir.parent.exists()


async def test_a_forked_child_leaves_it_alone(binary: str | None) -> None:
    code = """
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(os.path.isdir(server.data_dir), server.start_sync().pid, flush=True)
else:
    server.stop_sync()
"""
    process, pid, _ = parent(code, binary)
    assert process.communicate()[0].split() == ["True", str(pid)]


@pytest.mark.skipif(sys.platform != "linux", reason="uses PR_SET_PDEATHSIG")
async def test_a_killed_supervisor_takes_etcd_along(binary: str | None) -> None:
    async with EmbeddedEtcd(binary=binary) as server:
        pid = server.pid
        supervisor = int(Path(f"/proc/{pid}/stat").read_text().split()[3])
        os.kill(supervisor, signal.SIGKILL)
        await eventually(lambda: not serves(server.endpoint))


async def test_a_forgotten_one_is_stopped(binary: str | None) -> None:
    pid = (await EmbeddedEtcd(binary=binary).start()).pid
    await eventually(lambda: gc.collect() >= 0 and not alive(pid))


async def test_a_cancelled_start_leaves_nothing(binary: str | None) -> None:
    server = EmbeddedEtcd(binary=binary)
    start = asyncio.create_task(server.start())
    await eventually(lambda: server.pid)
    pid = server.pid
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not alive(pid)


async def test_a_taken_port_is_named(binary: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EtcdUnavailable, match=f"port {port} of 127.0.0.1 is taken"):
            await EmbeddedEtcd(binary=binary, port=port).start()


async def test_a_port_lost_in_a_race_is_replaced(binary: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(embedded, "is_free", lambda port: True)
        ports = iter([taken.getsockname()[1], *embedded._PORTS])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        async with EmbeddedEtcd(binary=binary) as server:
            assert server.endpoint != f"http://127.0.0.1:{taken.getsockname()[1]}"


async def test_a_failed_start_shows_what_etcd_said(binary: str | None, tmp_path: Path) -> None:
    with pytest.raises(EtcdUnavailable, match="no-such-flag"):
        await EmbeddedEtcd(binary=binary, args=["--no-such-flag"]).start()
    with pytest.raises(EtcdUnavailable, match="FileNotFoundError"):
        await EmbeddedEtcd(binary=tmp_path / "etcd").start()


async def test_variables_for_etcd_are_not_passed_on(binary: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "nonsense")
    async with EmbeddedEtcd(binary=binary):
        pass


def test_the_one_on_path_comes_first_and_scripts_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, content in (("script", b"#!/bin/sh\n"), ("real", b"\x7fELF")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "etcd").write_bytes(content)
        (tmp_path / folder / "etcd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'script'}{os.pathsep}{tmp_path / 'real'}")
    assert find_etcd() == tmp_path / "real" / "etcd"
    monkeypatch.setenv("PATH", str(tmp_path / "script"))
    assert find_etcd().parent.name == "etcdbin"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EtcdUnavailable, match="pip install 'codomyrmex-concurrency\\[embedded\\]'"):
        find_etcd()


async def test_an_etcd_that_was_quicker_at_the_port_is_not_taken_for_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with EmbeddedEtcd() as quicker:
        monkeypatch.setattr(embedded, "is_free", lambda port: True)
        port = int(quicker.endpoint.rpartition(":")[2])
        with pytest.raises(EtcdUnavailable, match="address already in use"):
            await EmbeddedEtcd(port=port).start()
