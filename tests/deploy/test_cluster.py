"""The compose file's cluster for real: in Docker where an engine and compose are there, and its members' settings as
plain processes everywhere; certificates, users, roles, an agent that drains."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="not run: the deployment's cluster (the extra `deploy` is not installed)")

from codomyrmex.concurrency import DistributedLock, EtcdAuthError, LockManager, Session
from codomyrmex.concurrency.etcd.embedded import find_etcd
from tests.cluster import _free_ports
from tests.helpers import eventually

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "etcd"


class Deployed:
    """Three members with TLS, and what their clients need."""

    def __init__(self, folder: Path, endpoints: list[str]) -> None:
        self.certificates = folder / "certificates"
        self.endpoints = endpoints

    def settings(self, user: str, **others: Any) -> dict[str, Any]:
        return {
            "endpoints": ",".join(self.endpoints),
            "ca_file": self.certificates / "client-ca.crt",
            "cert_file": self.certificates / f"{user}.crt",
            "key_file": self.certificates / f"{user}.key",
            "dial_timeout": 15.0,
            **others,
        }

    def operate(self, *arguments: str, wait: float = 0) -> subprocess.CompletedProcess[str]:
        environment = {
            "ETCD_WAIT": str(wait),
            "PATH": os.environ["PATH"],
            "ETCD_ENDPOINTS": ",".join(self.endpoints),
            "ETCD_CA_FILE": str(self.certificates / "client-ca.crt"),
            "ETCD_CERT_FILE": str(self.certificates / "gateway.crt"),
            "ETCD_KEY_FILE": str(self.certificates / "gateway.key"),
            "ETCD_ROOT_PASSWORD_FILE": str(self.certificates / "root-password"),
        }
        script = str(DEPLOY / "kubernetes/base/operate.py")
        return subprocess.run(
            (sys.executable, script, *arguments),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def etcdctl(self, user: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        program = str(shutil.which("etcdctl") or Path(sys.executable).with_name("etcdctl"))
        its = self.settings(user)
        tls = ("--cacert", its["ca_file"], "--cert", its["cert_file"], "--key", its["key_file"])
        command = (program, "--endpoints", self.endpoints[0], *map(str, tls), *arguments)
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the deployment's folder with certificates in it; the script is run twice and changes nothing then."""
    if not shutil.which("openssl"):
        pytest.skip("not run: the deployment's cluster (openssl is not installed)")
    copy = tmp_path_factory.mktemp("deploy") / "etcd"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("certificates"))
    contents = []
    for _ in range(2):
        subprocess.run([copy / "certificates.sh"], check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in (copy / "certificates").rglob("*") if path.is_file()})
    assert contents[0] == contents[1] and len(contents[0]) > 10
    return copy


@pytest.fixture(scope="module")
def deployed(folder: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """The members of compose.yaml as processes of this host, with their very settings but for addresses and folders."""
    binary = request.config.getoption("--etcd-binary") or str(find_etcd())
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    ports = _free_ports(6)
    clients, peers = ports[:3], ports[3:]
    cluster = ",".join(f"etcd-{n + 1}=https://localhost:{port}" for n, port in enumerate(peers))
    processes = []
    try:
        for number in range(3):
            given = services[f"etcd-{number + 1}"]["environment"]
            its = {name: re.sub(r"\$\{\w+:-(\w+)}", r"\1", str(value)) for name, value in given.items()}
            its = {name: value.replace("/run/secrets", str(folder / "certificates")) for name, value in its.items()}
            its |= {
                "ETCD_DATA_DIR": str(folder / f"data-{number}"),
                "ETCD_INITIAL_CLUSTER": cluster,
                "ETCD_LISTEN_CLIENT_URLS": f"https://127.0.0.1:{clients[number]}",
                "ETCD_ADVERTISE_CLIENT_URLS": f"https://127.0.0.1:{clients[number]}",
                "ETCD_LISTEN_PEER_URLS": f"https://127.0.0.1:{peers[number]}",
                "ETCD_INITIAL_ADVERTISE_PEER_URLS": f"https://localhost:{peers[number]}",
                "PATH": os.environ["PATH"],
            }
            del its["ETCD_LISTEN_METRICS_URLS"]
            if tuple(map(int, version.split(".")[:2])) < (3, 6):
                del its["ETCD_FEATURE_GATES"], its["ETCD_CORRUPT_CHECK_TIME"]
            with open(folder / f"etcd-{number}.log", "wb") as log:
                processes.append(subprocess.Popen([binary], env=its, stdout=log, stderr=log))
        yield Deployed(folder, [f"https://127.0.0.1:{port}" for port in clients])
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def guarded(deployed: Deployed) -> Deployed:
    """With users and roles; made twice, which does no harm."""
    first = deployed.operate("roles", wait=40)
    assert first.returncode == 0, first.stderr
    second = deployed.operate("roles")
    assert second.returncode == 0, second.stderr
    assert first.stdout == second.stdout and "/codomyrmex/ and nothing else; auth is on" in first.stdout
    return deployed


async def test_an_agent_locks_in_its_namespace_and_nowhere_else(guarded: Deployed) -> None:
    async with Session(**guarded.settings("agent")) as session, DistributedLock("x", session) as grant:
        await grant.put("/codomyrmex/files/x", "written")
        with pytest.raises(EtcdAuthError):
            await grant.put("/elsewhere", "refused")
    with pytest.raises(EtcdAuthError):
        await Session(**guarded.settings("agent", namespace="codomyrmex-neighbour")).open()
    with pytest.raises(EtcdAuthError):
        await Session(**guarded.settings("observer")).open()  # a session writes its key
    async with Session(**guarded.settings("operator")) as session:
        assert await LockManager(session).locks() == []


def test_defragmentation_leaves_small_members_alone(guarded: Deployed) -> None:
    done = guarded.operate("defragment")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left alone") == 3 and "(leader)" in done.stdout.splitlines()[-1]


def test_backups_are_rotated(guarded: Deployed, tmp_path: Path) -> None:
    snapshot, backups = tmp_path / "snapshot.db", tmp_path / "backups"
    whole = b"snapshot" * 64 + hashlib.sha256(b"snapshot" * 64).digest()
    snapshot.write_bytes(whole)
    backups.mkdir()
    for number in range(40):
        (backups / f"etcd-20260101T0000{number:02d}Z.db").write_bytes(b"old")
    assert guarded.operate("rotate", str(snapshot), str(backups)).returncode == 0
    kept = sorted(backups.iterdir())
    assert len(kept) == 28 and kept[-1].read_bytes() == whole
    assert guarded.operate().returncode != 0 and guarded.operate("nonsense").returncode != 0


@pytest.mark.parametrize("what", ["no password file", "wrong password", "foreign authority"])
def test_what_is_wrong_is_said_in_one_line(guarded: Deployed, tmp_path: Path, what: str) -> None:
    copy = Deployed(tmp_path, guarded.endpoints)
    shutil.copytree(guarded.certificates, copy.certificates)
    if what == "no password file":
        (copy.certificates / "root-password").unlink()
    elif what == "wrong password":
        (copy.certificates / "root-password").write_text("wrong")
    else:
        shutil.copyfile(copy.certificates / "peer-ca.crt", copy.certificates / "client-ca.crt")
    done = copy.operate("roles")
    said = {
        "no password file": "root-password",
        "wrong password": "authentication failed",
        "foreign authority": "CERTIFICATE",
    }
    assert done.returncode == 1 and said[what] in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_members_certificate_may_ask_for_health_and_nothing_else(guarded: Deployed) -> None:
    """The health check in a container has no other one."""
    assert guarded.etcdctl("server", "endpoint", "health").returncode == 0
    assert "permission denied" in guarded.etcdctl("server", "get", "/codomyrmex/x").stderr


def test_the_password_of_root_is_changed_by_the_operator(guarded: Deployed) -> None:
    """As SECURITY.md says: etcd first, then the file that `operate.py` reads."""
    secret = guarded.certificates / "root-password"
    old, new = secret.read_text(), "new-password\n"
    for password in (new, old):
        done = guarded.etcdctl("operator", "user", "passwd", "root", "--interactive=false", stdin=password)
        assert done.returncode == 0, done.stderr
        assert "authentication failed" in guarded.operate("roles").stderr
        secret.write_text(password)
        done = guarded.operate("roles")
        assert done.returncode == 0, done.stderr


# The script of certificates


def certificates(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / "certificates.sh"], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def made(folder: Path, tmp_path: Path) -> Path:
    """A folder of certificates that a test may break."""
    shutil.copy(folder / "certificates.sh", tmp_path)
    shutil.copytree(folder / "certificates", tmp_path / "certificates")
    return tmp_path


def short_lived(folder: Path, name: str, key: str, *, days: int) -> None:
    """Puts a certificate that ends soon in the place of one that is there."""
    openssl = ("openssl", "req", "-x509", "-new", "-days", str(days), "-subj", f"/CN={name}")
    files = ("-key", folder / key, "-out", folder / f"{name}.crt")
    subprocess.run((*openssl, *files), check=True, capture_output=True)


def test_a_certificate_is_renewed_thirty_days_before_its_end_in_its_own_file(made: Path) -> None:
    files = made / "certificates"
    short_lived(files, "agent", "agent.key", days=29)
    before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in files.iterdir() if path.is_file()}
    done = certificates(made)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if ": renewed" in line]
    assert line.startswith("agent: renewed, since it ended ") and "server: kept, ends " in done.stdout
    verify = ("openssl", "verify", "-CAfile", files / "client-ca.crt", files / "agent.crt")
    subprocess.run(verify, check=True, capture_output=True)
    for name, (content, inode) in before.items():
        # A container's mount stays with the file, so the file must stay.
        assert (files / name).stat().st_ino == inode
        assert ((files / name).read_bytes() != content) == name.startswith("agent.")
    assert {path.name for path in files.iterdir()} == {*before, "authorities"}


def test_leaves_of_another_authority_and_half_made_ones_are_made_anew(made: Path) -> None:
    files = made / "certificates"
    (files / "authorities/client-ca.key").unlink()
    (files / "client-ca.crt").unlink()
    (files / "peer.crt").unlink()
    done = certificates(made)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("since client-ca had not signed it") == 5 and "peer: made" in done.stdout
    assert "peer-ca: made" not in done.stdout and "client-ca: made" in done.stdout


@pytest.mark.parametrize("what", ["key alone", "certificate alone", "ends", "no key"])
def test_the_script_says_why_it_cannot_go_on(made: Path, what: str) -> None:
    files = made / "certificates"
    key = files / "authorities/client-ca.key"
    if what == "key alone":
        (files / "client-ca.crt").unlink()
    elif what == "certificate alone":
        key.unlink()
        (files / "agent.crt").unlink()
    elif what == "ends":
        short_lived(files, "client-ca", "authorities/client-ca.key", days=20)
    else:
        key.write_text("no key")
        (files / "agent.crt").unlink()
    done = certificates(made)
    said = {
        "key alone": "client-ca.key is there without client-ca.crt",
        "certificate alone": "client-ca.key is missing: agent cannot be signed",
        "ends": "the authority client-ca ends ",
        "no key": "openssl x509 failed: ",
    }
    assert done.returncode == 1 and said[what] in done.stderr, done


def test_the_keys_of_authorities_are_moved_to_their_folder(made: Path) -> None:
    files = made / "certificates"
    for name in ("peer-ca", "client-ca"):
        (files / f"authorities/{name}.key").rename(files / f"{name}.key")
        (files / f"{name}.srl").write_text("01")
    (files / "authorities").rmdir()
    for file in files.iterdir():
        file.chmod(0o600)
    files.chmod(0o755)
    done = certificates(made)
    assert done.returncode == 0 and ": renewed" not in done.stdout, done
    assert {path.name for path in (files / "authorities").iterdir()} == {"peer-ca.key", "client-ca.key"}
    assert not list(files.glob("*-ca.key")) and not list(files.glob("*.srl"))
    assert files.stat().st_mode & 0o777 == (files / "authorities").stat().st_mode & 0o777 == 0o700
    closed = {path.name for path in files.rglob("*") if path.is_file() and path.stat().st_mode & 0o077 == 0}
    keys = {path.name for path in files.rglob("*.key")}
    assert closed == keys - {"agent.key"} | {"root-password"}


async def test_the_agent_gives_back_what_it_holds_on_sigterm(guarded: Deployed, tmp_path: Path) -> None:
    its = guarded.settings("agent")
    [port] = _free_ports(1)
    environment = {
        **os.environ,
        **{
            f"CODOMYRMEX_ETCD_{name.upper()}": str(its[name])
            for name in ("endpoints", "ca_file", "cert_file", "key_file")
        },
        "CODOMYRMEX_ETCD_SESSION_TTL": "60",
        "AGENT_ALIVE_FILE": str(tmp_path / "alive"),
        "AGENT_METRICS_PORT": str(port),
    }
    agent = await asyncio.create_subprocess_exec(sys.executable, str(DEPLOY / "agent/agent.py"), env=environment)
    try:
        async with Session(**guarded.settings("operator")) as session:
            manager = LockManager(session)
            await eventually(manager.locks, 20)
            assert (tmp_path / "alive").exists()
            agent.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(agent.wait(), 10) == 0
            assert await manager.locks() == []
    finally:
        if agent.returncode is None:
            agent.kill()
            await agent.wait()


def _compose() -> tuple[str, ...] | None:
    """The compose there is: Docker's plugin, or Debian's program."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if (
            shutil.which(command[0])
            and subprocess.run((*command, "version"), capture_output=True, check=False).returncode == 0
        ):
            return command
    return None


@pytest.mark.docker
@pytest.mark.timeout(200)
async def test_compose_comes_up_twice_and_serves(folder: Path, request: pytest.FixtureRequest) -> None:
    containers = pytest.importorskip("tests.containers", reason="not run: compose (the extra `containers` is missing)")
    compose = _compose()
    if why := containers.missing() or (None if compose else "neither docker compose nor docker-compose is there"):
        pytest.skip(f"not run: compose.yaml in Docker ({why})")
    assert compose
    image = containers.image(request.config.getoption("--etcd-binary"))
    ports = _free_ports(3)
    text = (folder / "compose.yaml").read_text()
    if "ETCD_IMAGE" not in os.environ:  # the image built here may be of an etcd older than these, and has no etcdctl
        text = re.sub(r"\n    ETCD_(CORRUPT_CHECK_TIME|FEATURE_GATES): .*", "", text)
        text = text.replace("[CMD, etcdctl, endpoint, health]", "[CMD, etcd, --version]")
    here = folder / "compose-here.yaml"
    here.write_text(text)
    environment = {**os.environ, "ETCD_IMAGE": image, "COMPOSE_PROJECT_NAME": f"codomyrmex{os.getpid()}"}
    environment |= {f"ETCD_PORT_{number + 1}": str(port) for number, port in enumerate(ports)}
    run = (*compose, "-f", str(here))
    try:
        for _ in range(2):
            up = (*run, "up", "-d", "etcd-1", "etcd-2", "etcd-3")
            done = await asyncio.to_thread(
                subprocess.run, up, env=environment, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr
        deployed = Deployed(folder, [f"https://127.0.0.1:{port}" for port in ports])
        done = await asyncio.to_thread(deployed.operate, "roles", wait=50)
        assert done.returncode == 0, done.stderr
        async with Session(**deployed.settings("agent")) as session, DistributedLock("x", session) as grant:
            assert grant.token > 0
    finally:
        down = (*run, "down", "-v", "--timeout", "5")
        await asyncio.to_thread(subprocess.run, down, env=environment, capture_output=True, check=False, timeout=120)
