"""The example agent as a process: it is told to end while it waits, edits or has no etcd; etcd goes and comes back.

And the job that copies the agents' certificate, against an API server made here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import trustme

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from tests.helpers import eventually

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy/etcd"
AGENT = DEPLOY / "agent"
FILES = [f"file_edit:module_{number}.py" for number in range(5)]
# The example agent with one changed line, as a user would change it.
PROGRAM = "import asyncio, sys; sys.path.insert(0, {folder!r}); import agent; {change}; asyncio.run(agent.main())"


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


copy_certificate = _loaded(DEPLOY / "kubernetes/agents/copy_certificate.py")


class Agent:
    """A running agent, its two files and everything that it has said."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.alive, self.ready = folder / "alive", folder / "ready"
        self.said = ""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.said += line.decode()

    async def ends(self, within: float) -> float:
        """Send SIGTERM; the seconds until the process has ended, with exit code 0."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(self.process.wait(), within)
        took = time.monotonic() - began
        await self._listening
        assert code == 0, self.said
        return took


@contextlib.asynccontextmanager
async def agent(
    folder: Path, endpoint: str, namespace: str, change: str = "", **environment: str
) -> AsyncIterator[Agent]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM.format(folder=str(AGENT), change=change or "pass")),
        env={
            **os.environ,
            "CODOMYRMEX_ETCD_ENDPOINTS": endpoint,
            "CODOMYRMEX_ETCD_NAMESPACE": namespace,
            "CODOMYRMEX_ETCD_SESSION_TTL": "60",
            "AGENT_ALIVE_FILE": str(folder / "alive"),
            "AGENT_READY_FILE": str(folder / "ready"),
            "AGENT_METRICS_PORT": "0",
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    started = Agent(process, folder)
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await started._listening


async def test_sigterm_ends_a_wait_at_once_and_leaves_no_entry(
    etcd: EmbeddedEtcd, namespace: str, session: Session, tmp_path: Path
) -> None:
    manager = LockManager(session)
    async with manager.acquire_all(FILES), agent(tmp_path, etcd.endpoint, namespace) as waiting:
        await eventually(lambda: _waiters(manager), 20)
        assert waiting.alive.exists() and waiting.ready.exists()
        assert await waiting.ends(within=10) < 2
        assert await _waiters(manager) == 0
    assert "edits" not in waiting.said and "ended while it waited" in waiting.said


async def test_sigterm_lets_an_edit_end_and_releases_its_lock(
    etcd: EmbeddedEtcd, namespace: str, session: Session, tmp_path: Path
) -> None:
    manager = LockManager(session)
    long = "agent.edit = lambda grant: (agent.say('begins'), asyncio.sleep(1.5))[1]"
    async with agent(tmp_path, etcd.endpoint, namespace, long) as editing:
        await eventually(lambda: "begins" in editing.said, 20)
        assert 0.5 < await editing.ends(within=10) < 4
        assert await manager.locks() == []
    assert editing.said.count("begins") == 1 and "ended while it waited" not in editing.said


async def test_an_edit_that_hangs_is_cancelled_and_the_agent_goes_on(
    etcd: EmbeddedEtcd, namespace: str, tmp_path: Path
) -> None:
    hangs = "agent.EDIT_LIMIT = 0.3; agent.edit = lambda grant: asyncio.sleep(60)"
    async with agent(tmp_path, etcd.endpoint, namespace, hangs) as editing:
        await eventually(lambda: editing.said.count("took longer than 0.3 s; it is cancelled") > 1, 20)
        assert await editing.ends(within=10) < 2


async def test_a_timeout_does_not_end_the_session(
    etcd: EmbeddedEtcd, namespace: str, session: Session, tmp_path: Path
) -> None:
    manager = LockManager(session)
    async with agent(tmp_path, etcd.endpoint, namespace, "agent.WAIT_LIMIT = 0.3") as waiting:
        async with manager.acquire_all(FILES):
            await eventually(lambda: waiting.said.count("tries the next file in 1 s") > 1, 20)
            first = await eventually(lambda: _sessions(manager, session), 20)
        assert await eventually(lambda: _sessions(manager, session), 20) == first
        assert "new session" not in waiting.said
        await waiting.ends(within=10)


async def test_etcd_goes_and_comes_back_within_the_lease(namespace: str, tmp_path: Path) -> None:
    async with (
        EmbeddedEtcd() as etcd,
        Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=60) as session,
        agent(tmp_path, etcd.endpoint, namespace, CODOMYRMEX_ETCD_REQUEST_TIMEOUT="1") as editing,
    ):
        manager = LockManager(session)
        first = await eventually(lambda: _sessions(manager, session), 20)
        await asyncio.to_thread(etcd.kill)
        await eventually(lambda: "tries the next file in 1 s" in editing.said, 30)
        await etcd.start()
        edits = editing.said.count("edits")
        await eventually(lambda: editing.said.count("edits") > edits, 30)
        assert await eventually(lambda: _sessions(manager, session), 20) == first
        assert "new session" not in editing.said


async def test_without_etcd_an_agent_is_alive_but_not_ready_and_ends_when_told(tmp_path: Path) -> None:
    (tmp_path / "ready").touch()  # of an earlier container
    async with agent(tmp_path, "http://127.0.0.1:1", "nowhere", CODOMYRMEX_ETCD_DIAL_TIMEOUT="1") as waiting:
        await eventually(lambda: "opens a new session in 1 s" in waiting.said, 20)
        assert waiting.alive.exists() and not waiting.ready.exists()
        assert await waiting.ends(within=10) < 2


async def test_etcd_that_is_gone_does_not_hold_up_the_end(namespace: str, tmp_path: Path) -> None:
    async with (
        EmbeddedEtcd() as etcd,
        agent(tmp_path, etcd.endpoint, namespace, CODOMYRMEX_ETCD_REQUEST_TIMEOUT="1") as waiting,
    ):
        await eventually(lambda: "edits" in waiting.said, 20)
        await asyncio.to_thread(etcd.kill)
        await eventually(lambda: "tries the next file" in waiting.said, 30)
        assert await waiting.ends(within=20) < 10


async def _waiters(manager: LockManager) -> int:
    return sum(len(lock.waiters) for lock in await manager.locks())


async def _sessions(manager: LockManager, besides: Session) -> set[str]:
    """The sessions, other than ``besides``, that hold a lock or wait for one."""
    found = {owner.session for lock in await manager.locks() for owner in (*lock.holders, *lock.waiters)}
    return found - {f"{besides.id:016x}"}


# The copy of the certificate

SECRET = {"metadata": {"name": "agent-tls"}, "data": {"ca.crt": "YQ==", "tls.crt": "Yg==", "tls.key": "Yw=="}}
BUNDLE = {"data": {"ca.crt": "-----BEGIN CERTIFICATE-----\nold and new\n"}}
OLD = {
    "metadata": {"name": "agent-tls", "resourceVersion": "7"},
    "type": "kubernetes.io/tls",
    "data": {"tls.crt": "b2xk"},
}


def test_a_certificate_is_copied_once_and_again_when_it_was_renewed() -> None:
    made = copy_certificate.copied(SECRET, None, None)
    assert made and made["data"] == SECRET["data"] and made["type"] == "kubernetes.io/tls"
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("agent-tls", "codomyrmex-agents")
    assert copy_certificate.copied(SECRET, None, {**OLD, "data": made["data"]}) is None
    renewed = copy_certificate.copied(SECRET, None, OLD)
    assert renewed and renewed == {**OLD, "data": SECRET["data"]}


def test_the_bundle_of_authorities_replaces_the_one_authority() -> None:
    made = copy_certificate.copied(SECRET, BUNDLE, None)
    assert made and base64.b64decode(made["data"]["ca.crt"]).decode() == BUNDLE["data"]["ca.crt"]
    assert made["data"]["tls.crt"] == "Yg=="
    assert copy_certificate.copied(SECRET, BUNDLE, {**OLD, "data": made["data"]}) is None


@pytest.mark.parametrize(
    ("source", "bundle", "said"),
    [
        (None, None, "there is no secret codomyrmex-etcd/agent-tls; cert-manager makes it"),
        ({"data": {"tls.key": "Yw=="}}, None, "has no ca.crt, tls.crt; cert-manager makes it"),
        ({"metadata": {}}, None, "has no ca.crt, tls.crt, tls.key"),
        (SECRET, {"data": {}}, "client-ca-bundle has no certificate under ca.crt; mend or delete it"),
        (SECRET, {"data": {"ca.crt": "not PEM"}}, "client-ca-bundle has no certificate"),
    ],
)
def test_an_incomplete_certificate_is_never_copied(source: Any, bundle: Any, said: str) -> None:
    with pytest.raises(copy_certificate.Problem, match=said):
        copy_certificate.copied(source, bundle, OLD)


class _Server(BaseHTTPRequestHandler):
    """An API server with the secrets and ConfigMaps of ``objects``; it refuses what it is told to refuse."""

    objects: ClassVar[dict[str, Any]] = {}
    refused: ClassVar[int] = 0

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        self._answer(self.refused or (200 if found else 404), found or {"message": "none of that name"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body["metadata"]["resourceVersion"] = "1"
        self.objects[f"{self.path}/{body['metadata']['name']}"] = body
        self._answer(201, body)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.objects[self.path] = body
        self._answer(200, body)

    def _answer(self, code: int, body: Any) -> None:
        assert self.headers["Authorization"] == "Bearer token"
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_job_makes_updates_and_leaves_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("token")
    source = "/api/v1/namespaces/codomyrmex-etcd/secrets/agent-tls"
    target = "/api/v1/namespaces/codomyrmex-agents/secrets/agent-tls"
    monkeypatch.setattr(_Server, "objects", objects := {source: SECRET})
    server = HTTPServer(("127.0.0.1", 0), _Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(copy_certificate, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    try:
        assert not copy_certificate.Cluster()._context.verify_flags & ssl.VERIFY_X509_STRICT
        for said in ("copied", "up to date"):
            copy_certificate.main()
            assert capsys.readouterr().out == f"codomyrmex-agents/agent-tls: {said}\n"
        objects[source] = {**SECRET, "data": {**SECRET["data"], "tls.crt": "bmV3"}}
        copy_certificate.main()
        assert objects[target]["data"]["tls.crt"] == "bmV3" and objects[target]["metadata"]["resourceVersion"] == "1"
        monkeypatch.setattr(_Server, "refused", 403)
        with pytest.raises(SystemExit, match=r"refused with 403.*apply kubernetes/agents again"):
            copy_certificate.main()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(SystemExit, match=r"did not answer.*NetworkPolicy"):
        copy_certificate.main()
