"""`operate.py` alone: how it waits, what it repairs, and that one member after another stands still."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from codomyrmex.concurrency import EmbeddedEtcd
from codomyrmex.concurrency.etcd.embedded import find_etcd
from tests.cluster import _free_ports

pytestmark = pytest.mark.deploy

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/etcd/kubernetes/base/operate.py"
TLS = ("ETCD_CA_FILE", "ETCD_CERT_FILE", "ETCD_KEY_FILE")


@pytest.fixture
def operate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module; nothing of the environment reaches it, and the password is `secret`."""
    for name in (*TLS, "ETCD_ENDPOINTS", "ETCD_NAMESPACE", "ETCD_WAIT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("ETCD_ROOT_PASSWORD_FILE", str(tmp_path / "password"))
    spec = importlib.util.spec_from_file_location("operate", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def etcd_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of an etcd that no other test uses, since auth is turned on in it."""
    server = EmbeddedEtcd(binary=request.config.getoption("--etcd-binary"))
    server.start_sync()
    monkeypatch.setenv("ETCD_ENDPOINTS", server.endpoint)
    yield server.endpoint
    server.stop_sync()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_waiting_asks_every_two_seconds_and_says_so_every_thirty(
    operate: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()

    def ask() -> str:
        if clock.now < 170:
            raise operate.NoAnswer("connection refused")
        return "answer"

    assert operate.until_answered(ask, 900, clock, clock.sleep) == "answer"
    assert set(clock.slept) == {2.0} and clock.now == 170
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "900 s more: connection refused" in lines[0] and "840 s" in lines[2]


def test_waiting_ends_with_what_to_check(operate: ModuleType) -> None:
    clock = Clock()

    def ask() -> None:
        raise operate.NoAnswer("connection refused")

    with pytest.raises(operate.NoAnswer, match=r"connection refused.*900 s.*members.*ETCD_ENDPOINTS.*certificate"):
        operate.until_answered(ask, 900, clock, clock.sleep)
    assert clock.now == 1000


def test_a_refusal_is_not_asked_again(operate: ModuleType) -> None:
    clock = Clock()

    def ask() -> None:
        raise operate.Refused("authentication failed")

    with pytest.raises(operate.Refused):
        operate.until_answered(ask, 900, clock, clock.sleep)
    assert not clock.slept


class Answers(http.server.BaseHTTPRequestHandler):
    code, text = 503, "etcdserver: no leader"

    def do_POST(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *arguments: Any) -> None: ...


@pytest.mark.parametrize(
    ("code", "kind"), [(503, "NoAnswer"), (504, "NoAnswer"), (400, "Refused"), (401, "Refused"), (429, "Refused")]
)
def test_a_missing_leader_is_no_refusal(operate: ModuleType, code: int, kind: str) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), type("Its", (Answers,), {"code": code})) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(getattr(operate, kind), match="no leader"):
            operate.Etcd(f"http://127.0.0.1:{server.server_port}")("auth/user/list")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://nowhere.invalid:2379"])
def test_a_name_or_a_port_that_is_not_there_may_come(operate: ModuleType, endpoint: str) -> None:
    with pytest.raises(operate.NoAnswer, match=r"refused|not known|resolution"):
        operate.Etcd(endpoint)("auth/user/list")


def test_a_certificate_that_is_not_there_may_come(
    operate: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in TLS:
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(operate.NoAnswer, match=r"ETCD_CA_FILE is not there"):
        operate.Etcd("https://127.0.0.1:1")
    for name in TLS:
        (tmp_path / name).write_text("half written")
    with pytest.raises(operate.NoAnswer, match="cannot be read"):
        operate.Etcd("https://127.0.0.1:1")


def test_roles_waits_for_an_etcd_that_starts_later(
    operate: ModuleType, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    binary = request.config.getoption("--etcd-binary") or str(find_etcd())
    nobody, client, peer = _free_ports(3)
    endpoint, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    environment = {**os.environ, "ETCD_ENDPOINTS": f"http://127.0.0.1:{nobody},{endpoint}", "ETCD_WAIT": "60"}
    job = subprocess.Popen((sys.executable, str(SCRIPT), "roles"), env=environment, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    its = ("--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", endpoint, "--advertise-client-urls", endpoint)
    its += ("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers)
    with open(tmp_path / "log", "wb") as log:
        etcd = subprocess.Popen((binary, *its, "--initial-cluster", f"default={peers}"), stdout=log, stderr=log)
    try:
        _, said = job.communicate(timeout=50)
        assert job.returncode == 0 and len(said.splitlines()) == 1 and said.startswith("waiting for etcd"), said
        assert operate.logged_in(endpoint)[1]
    finally:
        for process in (job, etcd):
            process.kill()
            process.wait()


def test_an_older_root_gets_the_secrets_password_before_auth_is_on(operate: ModuleType, etcd_alone: str) -> None:
    etcd = operate.Etcd(etcd_alone)
    etcd("auth/role/add", name="root")
    etcd("auth/user/add", name="root", password="of an older secret")
    operate.roles()
    _, enabled = operate.logged_in(etcd_alone)
    assert enabled


def test_a_new_password_replaces_the_previous_one(operate: ModuleType, etcd_alone: str, tmp_path: Path) -> None:
    operate.roles()
    (tmp_path / "password").write_text("new\n")
    with pytest.raises(operate.Refused, match="authentication failed"):
        operate.roles()
    (tmp_path / "previous").write_text("secret\n")
    operate.roles()
    (tmp_path / "previous").unlink()
    operate.roles()


def test_users_of_a_proof_that_was_killed_are_deleted(operate: ModuleType, etcd_alone: str) -> None:
    etcd = operate.Etcd(etcd_alone)
    etcd("auth/user/add", name="proof-of-a-killed-run", password="secret")
    etcd("auth/user/add", name="bulletproof", password="secret")
    operate.roles()
    users = operate.logged_in(etcd_alone)[0]("auth/user/list")["users"]
    assert sorted(users) == ["agent", "bulletproof", "observer", "operator", "root"]


GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "used", "quota", "it_pays"),
    [
        (6 * GIB, 3.2 * GIB, 8 * GIB, True),  # above the alert's share of the quota
        (6 * GIB, 5 * GIB, 8 * GIB, False),  # that is data
        (4 * GIB, 2.2 * GIB, 8 * GIB, False),
        (4 * GIB, 1.9 * GIB, 8 * GIB, True),
        (6 * GIB, 3.2 * GIB, -1, False),  # there is no quota
        (90 << 20, 1 << 20, 100 << 20, False),
    ],
)
def test_a_file_that_nears_the_quota_pays_sooner(
    operate: ModuleType, size: int, used: float, quota: int, it_pays: bool
) -> None:
    assert operate.pays(size, int(used), quota) is it_pays


@pytest.mark.parametrize("told", [True, False])
def test_the_quota_is_etcds_own_or_that_of_the_environment(
    operate: ModuleType, etcd_alone: str, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """Since 3.6 etcd tells it."""
    seen: list[int] = []

    class Older(operate.Etcd):  # type: ignore[name-defined, misc]
        def __call__(self, path: str, /, *, timeout: float = operate.CALL, **body: object) -> dict[str, Any]:
            answer = dict(super().__call__(path, timeout=timeout, **body))
            if path == "maintenance/status":
                answer.pop("dbSizeQuota", None)
                if told:
                    answer["dbSizeQuota"] = str(5 * GIB)
            return answer

    monkeypatch.setattr(operate, "Etcd", Older)
    monkeypatch.setattr(operate, "pays", lambda size, used, quota: seen.append(quota))
    operate.defragment()
    monkeypatch.setenv("ETCD_QUOTA_BACKEND_BYTES", str(3 * GIB))
    operate.defragment()
    assert seen == ([5 * GIB, 5 * GIB] if told else [2 * GIB, 3 * GIB])


@pytest.mark.parametrize("auth", [False, True])
def test_the_next_member_stands_still_only_when_the_last_one_reads_again(
    operate: ModuleType, etcd_alone: str, monkeypatch: pytest.MonkeyPatch, auth: bool
) -> None:
    if auth:
        operate.roles()
    monkeypatch.setenv("ETCD_ENDPOINTS", f"{etcd_alone},{etcd_alone.replace('127.0.0.1', 'localhost')}")
    asked: list[tuple[str, float]] = []
    silent = iter((True, True, False, True, False))

    class Recorded(operate.Etcd):  # type: ignore[name-defined, misc]
        def __call__(self, path: str, /, *, timeout: float = operate.CALL, **body: object) -> dict[str, Any]:
            if path in ("maintenance/defragment", "kv/range"):
                asked.append((path, timeout))
            if path == "kv/range" and next(silent):
                raise operate.NoAnswer("it stands still")
            return dict(super().__call__(path, timeout=timeout, **body))

    for name, value in {"Etcd": Recorded, "LEAST": 0, "PAYS": -1, "AGAIN": 0}.items():
        monkeypatch.setattr(operate, name, value)
    operate.defragment()
    stands, reads = ("maintenance/defragment", 900), ("kv/range", 10)
    assert asked == [stands, reads, reads, reads, stands, reads, reads]


@pytest.mark.parametrize("damage", ["cut off", "a bit turned", "of a data directory", "cut off at a page"])
def test_a_damaged_snapshot_is_not_kept_and_costs_no_older_one(
    operate: ModuleType, tmp_path: Path, damage: str
) -> None:
    database = bytes(range(256)) * 8192  # two blocks of copying
    whole = database + hashlib.sha256(database).digest()
    broken = {
        "cut off": whole[:-1],
        "a bit turned": b"\x01" + whole[1:],
        "of a data directory": database,
        "cut off at a page": whole[: -operate.PAGE],
    }[damage]
    snapshot, folder = tmp_path / "snapshot.db", tmp_path / "backups"
    folder.mkdir()
    older = {f"etcd-20260101T0000{number:02d}Z.db" for number in range(operate.KEPT)}
    for name in older:
        (folder / name).write_bytes(b"older")
    snapshot.write_bytes(broken)
    with pytest.raises(operate.Damaged, match=r"snapshot.db is (not a whole snapshot|damaged).*Make a job"):
        operate.rotate(snapshot, folder)
    assert {path.name for path in folder.iterdir()} == older
    snapshot.write_bytes(whole)
    operate.rotate(snapshot, folder)
    [kept] = {path for path in folder.iterdir() if path.name not in older}
    assert kept.read_bytes() == whole
