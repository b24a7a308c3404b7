"""Runbooks as far as they go without Kubernetes: a full database, and a snapshot through a forwarded port."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency.etcd.embedded import find_etcd
from tests.cluster import _free_ports
from tests.gobuild import NEWEST, built

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "etcd"
SMALL, RAISED = 16 << 20, 64 << 20
ANY = base64.b64encode(b"any-key").decode()


def codomyrmex(endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (str(Path(sys.executable).parent / "codomyrmex"), "concurrency", *arguments)
    environment = {**os.environ, "CODOMYRMEX_ETCD_ENDPOINTS": endpoint}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@contextmanager
def etcd(binary: str, folder: Path, *flags: str) -> Iterator[str]:
    """An etcd that has answered once; `EmbeddedEtcd` waits for its health, which an alarm forbids."""
    port, peers = _free_ports(2)
    endpoint, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    urls = (f"--listen-client-urls={endpoint}", f"--advertise-client-urls={endpoint}", f"--listen-peer-urls={peer}")
    command = (binary, f"--data-dir={folder / 'data'}", *urls, *flags)
    with open(folder / "log", "ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(200):
                with suppress(OSError):
                    call(endpoint, "kv/range", key=ANY)
                    break
                time.sleep(0.1)
            yield endpoint
        finally:
            server.kill()


def call(endpoint: str, path: str, **body: object) -> Any:
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def fill(endpoint: str) -> None:
    value = base64.b64encode(b"x" * 400_000).decode()
    for number in range(1000):
        key = base64.b64encode(b"/codomyrmex/filler/%d" % number).decode()
        try:
            call(endpoint, "kv/put", key=key, value=value)
        except urllib.error.HTTPError as error:
            assert "database space exceeded" in error.read().decode()
            return
    raise AssertionError("etcd took everything")


def quota(endpoint: str) -> float:
    shown = urllib.request.urlopen(f"{endpoint}/metrics", timeout=5).read().decode()
    [figure] = re.findall(r"^etcd_server_quota_backend_bytes (\S+)", shown, re.MULTILINE)
    return float(figure)


def test_data_that_fill_the_database_are_purged_after_the_quota_is_raised(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The order of nospace.md: without a higher quota no session opens, so nothing can be purged."""
    binary = request.config.getoption("--etcd-binary") or str(find_etcd())
    flags = (f"--quota-backend-bytes={SMALL}",)
    with etcd(binary, tmp_path, *flags) as endpoint:
        fill(endpoint)
        status = codomyrmex(endpoint, "status")
        assert status.returncode and "NOSPACE" in status.stdout + status.stderr
        for command in (("locks",), ("dlq", "stats"), ("dlq", "purge", "--older-than", "7d", "--yes")):
            refused = codomyrmex(endpoint, *command)
            assert refused.returncode == 1 and "database is full" in refused.stderr, refused
        call(endpoint, "kv/range", key=ANY)  # the check after defragmenting
    with etcd(binary, tmp_path, *flags, f"--quota-backend-bytes={RAISED}") as endpoint:
        assert quota(endpoint) == RAISED  # the last of two flags counts
        assert codomyrmex(endpoint, "dlq", "stats").returncode == 1  # the alarm outlasts a restart
        for alarm in call(endpoint, "maintenance/alarm", action="GET")["alarms"]:  # as `etcdctl alarm disarm` does
            call(endpoint, "maintenance/alarm", action="DEACTIVATE", **alarm)
        for command in (("status",), ("dlq", "stats"), ("dlq", "purge", "--older-than", "7d", "--yes")):
            done = codomyrmex(endpoint, *command)
            assert done.returncode == 0, done.stdout + done.stderr


# It stands for kubectl: secrets are files of the folder of certificates, and a port is forwarded to etcd's own.
KUBECTL = """\
#!/usr/bin/env python3
import base64, socket, sys, threading
files = {"ca.crt": "client-ca.crt", "tls.crt": "operator.crt", "tls.key": "operator.key"}
if "port-forward" in sys.argv:
    assert "service/etcd" in sys.argv
    def copy(source, target):
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    here, _ = map(int, sys.argv[-1].split(":"))
    with socket.create_server(("127.0.0.1", here)) as server:
        print(f"Forwarding from 127.0.0.1:{here} -> 2379", flush=True)
        while True:
            one, other = server.accept()[0], socket.create_connection(("127.0.0.1", PORT))
            for pair in ((one, other), (other, one)):
                threading.Thread(target=copy, args=pair, daemon=True).start()
assert "operator-tls" in sys.argv
name = sys.argv[-1].removeprefix("jsonpath={.data.").removesuffix("}")
assert "\\\\." in name, name
content = open(f"CERTIFICATES/{files[name.replace(chr(92), '')]}", "rb").read()
sys.stdout.write(base64.b64encode(content).decode())
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with etcd's own programs under their names."""
    folder = tmp_path / "programs"
    for program, name in (("server", "etcd"), ("etcdctl", "etcdctl"), ("etcdutl", "etcdutl")):
        if not built(program, NEWEST["3.7"], folder / f"{name}.d"):
            pytest.skip(f"not run: a snapshot as the operator (etcd {NEWEST['3.7']} cannot be built without Go)")
        (folder / name).symlink_to(folder / f"{name}.d" / program)
    return folder


def test_an_operator_saves_a_snapshot_through_a_forwarded_port(programs: Path, tmp_path: Path) -> None:
    page = (DEPLOY / "runbooks/upgrade.md").read_text()
    [block] = re.findall(r"^ *```sh\n( +\(\n.+?)^ *```$", page, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "etcd"
    shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("certificates"))
    subprocess.run([folder / "certificates.sh"], check=True, capture_output=True)
    certificates, (port, peers, here) = folder / "certificates", _free_ports(3)
    (programs / "kubectl").write_text(KUBECTL.replace("PORT", str(port)).replace("CERTIFICATES", str(certificates)))
    (programs / "kubectl").chmod(0o755)
    flags = {
        "data-dir": tmp_path / "data",
        "listen-client-urls": f"https://127.0.0.1:{port}",
        "advertise-client-urls": f"https://127.0.0.1:{port}",
        "listen-peer-urls": f"http://127.0.0.1:{peers}",
        "trusted-ca-file": certificates / "client-ca.crt",
        "cert-file": certificates / "server.crt",
        "key-file": certificates / "server.key",
    }
    command = [programs / "etcd", "--client-cert-auth", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
    ):
        try:
            script = textwrap.dedent(block).replace("12379", str(here))
            shell = ("bash", "-euo", "pipefail", "-c", script)
            done = subprocess.run(
                shell, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
            )
        finally:
            server.kill()
    assert done.returncode == 0 and "REVISION" in done.stdout, done.stdout + done.stderr
    assert (folder / "snapshot.db").stat().st_mode & 0o777 == 0o600
    check = (sys.executable, str(folder / "kubernetes/restore/base/restore.py"), "sha256", str(folder / "snapshot.db"))
    assert subprocess.run(check, check=False).returncode == 0
