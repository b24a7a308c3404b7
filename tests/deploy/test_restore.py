"""Backup and restore on a real etcd, by the scripts and by the jobs for Kubernetes: tokens go on rising after it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.session import core_of
from tests.cluster import cluster
from tests.gobuild import NEWEST, built

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

STAMP = "1700000000"
DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "etcd"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    for program in ("server", "etcdctl", "etcdutl"):
        if not built(program, NEWEST["3.7"], folder / f"{program}.d"):
            pytest.skip(f"not run: backup and restore (etcd {NEWEST['3.7']} cannot be built without Go)")
        (folder / program).symlink_to(folder / f"{program}.d" / program)
    return folder


def run(programs: Path, script: str, *arguments: str, endpoint: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "ETCDCTL_ENDPOINTS": endpoint}
    command = (str(DEPLOY / script), *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


async def test_tokens_rise_over_a_restore(programs: Path, tmp_path: Path) -> None:
    snapshot, restored = tmp_path / "snapshot.db", tmp_path / "restored"
    binary = str(programs / "server")
    async with EmbeddedEtcd(binary=binary, data_dir=tmp_path / "data") as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with DistributedLock("x", session) as grant:
                await grant.put("/restored/x", "before")
                saved = await asyncio.to_thread(run, programs, "backup.sh", str(snapshot), endpoint=own.endpoint)
                assert saved.returncode == 0, saved.stderr
                await grant.put("/restored/x", "after")
            for _ in range(20):  # the future that is lost
                async with DistributedLock("x", session) as last:
                    pass
    made = (str(snapshot), str(restored), "restored", "http://127.0.0.1:2380", "restored=http://127.0.0.1:2380", STAMP)
    done = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert done.returncode == 0, done.stderr
    again = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert again.returncode == 1 and "move it away first" in again.stderr
    async with EmbeddedEtcd(binary=binary, data_dir=restored) as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with LockManager(session).acquire("x", timeout=20) as grant:
                assert grant.token > last.token + 10_000 * (int(STAMP) - 1)
                found = await core_of(session).transport.get(Get(b"/restored/x"))
                assert found.kvs[0].value == b"before"
                await grant.put("/restored/x", "again")


async def test_three_members_come_back_as_one_cluster(programs: Path, tmp_path: Path) -> None:
    """Each is made anew by a call of its own, seconds apart, and they must still know one another."""
    snapshot = tmp_path / "snapshot.db"
    async with cluster(str(programs / "server")) as three:
        async with Session(endpoints=three.endpoints, session_ttl=5) as session, DistributedLock("x", session) as grant:
            await grant.put("/restored/x", "before")
            endpoint = three.members[0].endpoint
            saved = await asyncio.to_thread(run, programs, "backup.sh", str(snapshot), endpoint=endpoint)
            assert saved.returncode == 0, saved.stderr
        known = ",".join(f"{member.name}={member.peer}" for member in three.members)
        for member in three.members:
            await member.kill()
        for member in three.members:
            shutil.rmtree(member.data)
            made = (str(snapshot), str(member.data), member.name, member.peer, known, STAMP)
            done = await asyncio.to_thread(run, programs, "restore.sh", *made)
            assert done.returncode == 0, done.stderr
            await asyncio.sleep(1.1)  # a stamp taken anew would differ
        for member in three.members:
            await member.start(three.members)
        await three.leader()
        async with Session(endpoints=three.endpoints, session_ttl=5) as session, DistributedLock("x", session) as again:
            assert again.token > grant.token + 10_000 * (int(STAMP) - 1)


async def test_the_password_of_root_comes_back_with_the_snapshot(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job logs in with the older one beside the secret's, or sets the secret's while authentication is off."""
    secret, snapshot, restored = tmp_path / "password", tmp_path / "snapshot.db", tmp_path / "restored"
    binary = str(programs / "server")
    monkeypatch.setenv("ETCD_ROOT_PASSWORD_FILE", str(secret))
    for name in ("ETCD_CA_FILE", "ETCD_CERT_FILE", "ETCD_KEY_FILE", "ETCD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)

    async def roles() -> None:
        await asyncio.to_thread(operate.roles)

    def etcdctl(endpoint: str, password: str, *arguments: str) -> None:
        command = (str(programs / "etcdctl"), f"--endpoints={endpoint}", f"--user=root:{password}", *arguments)
        subprocess.run(command, capture_output=True, check=True, timeout=60)

    secret.write_text("of the snapshot")
    async with EmbeddedEtcd(binary=binary, data_dir=tmp_path / "data") as own:
        monkeypatch.setenv("ETCD_ENDPOINTS", own.endpoint)
        await roles()
        await asyncio.to_thread(etcdctl, own.endpoint, "of the snapshot", "snapshot", "save", str(snapshot))
    made = (str(snapshot), str(restored), "restored", "http://127.0.0.1:2380", "restored=http://127.0.0.1:2380", STAMP)
    done = await asyncio.to_thread(run, programs, "restore.sh", *made)
    assert done.returncode == 0, done.stderr
    async with EmbeddedEtcd(binary=binary, data_dir=restored) as own:
        monkeypatch.setenv("ETCD_ENDPOINTS", own.endpoint)
        secret.write_text("of the secret")
        with pytest.raises(operate.Refused, match="authentication failed"):
            await roles()
        secret.with_name("previous").write_text("of the snapshot\n")
        await roles()
        secret.with_name("previous").unlink()
        await roles()
        secret.write_text("new")
        await asyncio.to_thread(etcdctl, own.endpoint, "of the secret", "auth", "disable")
        await roles()
        _, enabled = await asyncio.to_thread(operate.logged_in, own.endpoint)
        assert enabled


def test_a_stamp_must_be_given(programs: Path, tmp_path: Path) -> None:
    done = run(programs, "restore.sh", "snapshot", str(tmp_path / "x"), "m", "http://127.0.0.1:2380", "m=…", "now")
    assert done.returncode == 2 and "same snapshot, cluster and stamp" in done.stderr


# The jobs for Kubernetes


def script(name: str) -> ModuleType:
    """A script of the deployment, which is no package."""
    file = DEPLOY / "kubernetes" / name
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


restore = script("restore/base/restore.py")
operate = script("base/operate.py")

WHOLE = bytes(range(256)) * 8 + hashlib.sha256(bytes(range(256)) * 8).digest()
NAME = hashlib.sha256(WHOLE).hexdigest()


def member(data: Path, stamp: str = STAMP, sha256: str = NAME) -> Any:
    return restore.Member(data, stamp, sha256)


def database(directory: Path, content: bytes = b"former") -> Path:
    """A data directory, as far as the script looks into it."""
    file = directory / "member" / "snap" / "db"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_a_snapshot_is_taken_only_if_it_is_whole_and_the_named_one(tmp_path: Path) -> None:
    database(tmp_path / "etcd")
    damaged = bytes([WHOLE[0] ^ 1]) + WHOLE[1:]
    for content, reason in (
        (b"", "not a whole snapshot"),
        (WHOLE[:-1], "not a whole snapshot"),
        (WHOLE[:-512], "is damaged"),
        (damaged, "is damaged"),
        (WHOLE[:-32], "not a whole snapshot"),  # a database without its checksum
    ):
        with pytest.raises(restore.Refused, match=reason):
            member(tmp_path).receive(io.BytesIO(content))
    with pytest.raises(restore.Refused, match="another snapshot"):
        member(tmp_path, sha256="0" * 64).receive(io.BytesIO(WHOLE))
    assert not list((tmp_path / f"restore-{STAMP}").iterdir())
    one = member(tmp_path)
    one.receive(io.BytesIO(WHOLE))
    assert one.snapshot.read_bytes() == WHOLE
    one.receive(io.BytesIO(b"not read, since the snapshot is here"))
    assert one.snapshot.read_bytes() == WHOLE
    one.prepare(poll=60)  # it does not wait


@pytest.mark.parametrize(("stamp", "sha256"), [("now", NAME), ("0700000000", NAME), (STAMP, ""), (STAMP, "x" * 64)])
def test_a_stamp_and_a_checksum_must_be_given(tmp_path: Path, stamp: str, sha256: str) -> None:
    with pytest.raises(restore.Refused, match="make the ConfigMap etcd-restore anew"):
        member(tmp_path, stamp, sha256)


def test_a_member_that_runs_is_not_restored(tmp_path: Path) -> None:
    file = database(tmp_path / "etcd")
    one = member(tmp_path)
    one.receive(io.BytesIO(WHOLE))
    database(one.restored, b"restored")
    with open(file, "rb+") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        for step in (one.prepare, one.exchange, lambda: one.receive(io.BytesIO(WHOLE))):
            with pytest.raises(restore.Refused, match="etcd runs on this volume"):
                step()
    one.exchange()


@pytest.mark.parametrize("had_data", [True, False])
@pytest.mark.parametrize("crash", ["before", "between", "after"])
def test_an_exchange_goes_on_after_a_crash_and_is_made_once(
    tmp_path: Path, crash: str, had_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if had_data:
        database(tmp_path / "etcd")
    one = member(tmp_path)
    one.receive(io.BytesIO(WHOLE))
    database(one.restored, b"restored")
    if crash != "before":
        reached = iter([False, crash == "after"])

        def fails(folder: Path) -> None:
            if (crash == "between") or next(reached):
                raise OSError("crash")

        with monkeypatch.context() as patch:
            patch.setattr(restore, "sync", fails)
            with pytest.raises(OSError, match="crash"):
                one.exchange()
    one.exchange()
    one.exchange()
    assert (one.current / "member/snap/db").read_bytes() == b"restored"
    assert (one.old / "member/snap/db").exists() is had_data
    with pytest.raises(restore.Refused, match="later stamp"):
        member(tmp_path, "1600000000").refuse_unless_free()
    member(tmp_path, "1700000001").refuse_unless_free()


def test_a_job_that_runs_again_on_a_restored_member_changes_nothing(tmp_path: Path) -> None:
    database(tmp_path / "etcd")
    one = member(tmp_path)
    one.receive(io.BytesIO(WHOLE))
    database(one.restored, b"restored")
    one.exchange()
    one.receive(io.BytesIO(WHOLE))
    one.prepare(poll=60)
    database(one.restored, b"made once more")
    one.exchange()
    assert (one.current / "member/snap/db").read_bytes() == b"restored"
    assert (one.old / "member/snap/db").read_bytes() == b"former"
    assert [path.name for path in one.work.iterdir()] == ["snapshot.db"]


def test_a_restore_that_was_made_from_another_snapshot_is_refused(tmp_path: Path) -> None:
    one = member(tmp_path)
    one.receive(io.BytesIO(WHOLE))
    database(one.restored, b"restored")
    one.exchange()
    other = member(tmp_path, sha256="0" * 64)
    for step in (other.prepare, other.exchange, lambda: other.receive(io.BytesIO(WHOLE))):
        with pytest.raises(restore.Refused, match="made here already"):
            step()
    with open(one.current / "member/snap/db", "rb+") as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        with pytest.raises(restore.Refused, match="etcd runs on this volume"):
            one.prepare()


def test_only_a_restore_that_was_made_is_cleaned_up(tmp_path: Path) -> None:
    database(tmp_path / "etcd")
    one = member(tmp_path)
    assert one.clean() is False  # a member that was replaced since
    one.receive(io.BytesIO(WHOLE))
    with pytest.raises(restore.Refused, match="no restored directory"):
        one.exchange()
    with pytest.raises(restore.Refused, match="nothing was deleted"):
        one.clean()
    assert (one.current / "member/snap/db").read_bytes() == b"former" and one.snapshot.exists()
    database(one.restored, b"restored")
    one.exchange()
    assert one.clean() and one.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etcd", f"etcd.{STAMP}"] and not list(one.old.iterdir())
    with pytest.raises(restore.Refused, match="made here already"):
        one.receive(io.BytesIO(WHOLE))


def test_cleaning_takes_what_all_earlier_restores_left(tmp_path: Path) -> None:
    database(tmp_path / "etcd")
    for stamp in ("1600000000", STAMP):
        one = member(tmp_path, stamp)
        one.receive(io.BytesIO(WHOLE))
        database(one.restored, stamp.encode())
        one.exchange()
    member(tmp_path, "1500000000").work.mkdir()  # of a restore that was given up
    kept = {"lost+found", "etcd.old", "restore-1700000001"}
    for name in kept:
        (tmp_path / name).mkdir()
    one.clean()
    assert {path.name for path in tmp_path.iterdir()} == {"etcd", f"etcd.{STAMP}", *kept}
    assert (one.current / "member/snap/db").read_bytes() == STAMP.encode()


# The command that drives the jobs

FAKE = (
    f"#!{sys.executable}\n"
    + """import json, os, re, sys
from pathlib import Path
folder = Path(os.environ["FAKE"])
words = [word for word in sys.argv[1:] if word not in ("-n", "codomyrmex-etcd")]
state = json.loads((folder / "state").read_text())
with open(folder / "calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
job = next((word.partition("restore-")[2] for word in words if word.startswith("job/")), None)
match words[0]:
    case "get" if words[1].startswith("pvc/"):
        print(state["claims"][words[1][-6:]], end="")
    case "get" if words[1] == "pods":
        print(*("n1" for one in state["jobs"]))
    case "get" if words[1].startswith("configmap/"):
        print(state["stamped"], end="")
    case "get" if "creationTimestamp" in words[-1]:
        print(state["jobs"].get(job, {}).get("made", ""), end="")
    case "get":
        print(state["jobs"].get(job, {}).get("conditions", ""), end="")
    case "delete":
        del state["jobs"][job]
    case "apply":
        chosen = re.search(r"in \\((.*)\\)", words[-1])
        for name in chosen[1].split(",") if chosen else ("etcd-0", "etcd-1", "etcd-2"):
            state["jobs"].setdefault(name, {"made": "2026-01-02T00:00:00Z", "conditions": ""})
    case "logs" if "receive" in words:
        print("waits for the snapshot: run.sh sends it")
    case "logs":
        print(job, "said so")
    case "exec":
        content = sys.stdin.read()
        if job in state["deaf"]:
            sys.exit("no whole snapshot")
        failed = job in state["fails"]
        state["jobs"][job]["conditions"] = "FailureTarget Failed" if failed else "SuccessCriteriaMet Complete"
        print(job, "has", content)
(folder / "state").write_text(json.dumps(state))
"""
)


class Fake:
    """A `kubectl` that knows three claims, a ConfigMap and jobs, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "kubectl").write_text(FAKE)
        (folder / "kubectl").chmod(0o755)
        (folder / "snapshot.db").write_text("the snapshot")
        self.state: dict[str, Any] = {
            "stamped": "2026-01-01T00:00:00Z",
            "claims": dict.fromkeys(("etcd-0", "etcd-1", "etcd-2"), "Bound"),
            "jobs": {},
            "deaf": [],
            "fails": [],
        }

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command, and keep the state that it left."""
        (self.folder / "state").write_text(json.dumps(self.state))
        (self.folder / "calls").write_text("")
        environment = {"PATH": f"{self.folder}:{os.environ['PATH']}", "FAKE": str(self.folder), "RESTORE_WAIT": "2"}
        command = (str(DEPLOY / "kubernetes/restore/run.sh"), str(self.folder / "snapshot.db"))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        self.state = json.loads((self.folder / "state").read_text())
        return done

    def asked(self, word: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(word)]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_the_snapshot_is_sent_to_every_member_and_all_must_be_restored(fake: Fake) -> None:
    done = fake.run()
    assert done.returncode == 0 and done.stdout.endswith("all three are restored\n"), done.stderr
    assert all(f"etcd-{number} has the snapshot" in done.stdout for number in range(3))
    assert len(fake.asked("exec")) == 3 and not fake.asked("delete")


@pytest.mark.parametrize("kind", ["deaf", "fails"])
def test_the_first_failure_stops_it_and_it_goes_on_from_there(fake: Fake, kind: str) -> None:
    fake.state[kind] = ["etcd-1"]
    done = fake.run()
    assert done.returncode == 1 and "not every member is restored. Do not start etcd." in done.stderr
    assert ("etcd-1 said so" if kind == "fails" else "etcd-1 did not take the snapshot") in done.stderr
    assert not fake.asked("delete")  # the log stays
    fake.state[kind] = []
    done = fake.run()
    assert done.returncode == 0, done.stderr
    assert not [call for call in fake.asked("exec") if "restore-etcd-0" in call]
    assert fake.asked("delete") == (["delete job/restore-etcd-1"] if kind == "fails" else [])


def test_the_jobs_of_a_former_restore_do_not_count(fake: Fake) -> None:
    fake.state["jobs"] = {"etcd-0": {"made": "2025-12-31T00:00:00Z", "conditions": "SuccessCriteriaMet Complete"}}
    assert fake.run().returncode == 0
    assert fake.asked("delete") == ["delete job/restore-etcd-0"] and len(fake.asked("exec")) == 3


def test_members_with_a_volume_take_their_nodes_first(fake: Fake) -> None:
    fake.state["claims"]["etcd-1"] = "Pending"
    assert fake.run().returncode == 0
    first, second = fake.asked("apply")
    assert first.endswith("-l codomyrmex.io/member in (etcd-0,etcd-2)") and second.endswith("restore/run")


def test_a_job_that_does_nothing_is_told(fake: Fake) -> None:
    now = {"made": "2026-01-02T00:00:00Z", "conditions": ""}
    fake.state |= {"jobs": {"etcd-2": now}, "stamped": ""}
    done = fake.run()
    assert done.returncode == 1 and "the ConfigMap etcd-restore is not there" in done.stderr
    fake.state["stamped"] = "2026-01-01T00:00:00Z"
    (fake.folder / "kubectl").write_text(FAKE.replace("waits for the snapshot", "is being pulled"))
    done = fake.run()
    assert done.returncode == 1 and "nothing happened for 2 seconds" in done.stderr


def test_the_script_waits_for_the_words_that_the_job_says() -> None:
    assert f"*'{restore.WAITS}'*" in (DEPLOY / "kubernetes/restore/run.sh").read_text()


# A member's job


async def test_the_commands_of_a_members_job_restore_it(programs: Path, tmp_path: Path) -> None:
    """They run as the job has them, but for the folder, and beside an etcd that runs at first."""
    yaml = pytest.importorskip("yaml", reason="not run: restoring by a job (the extra `deploy` is not installed)")
    if not shutil.which("kubectl"):
        pytest.skip("not run: restoring by a job (kubectl is not installed)")
    shown = subprocess.check_output(("kubectl", "kustomize", str(DEPLOY / "kubernetes/restore/run")), text=True)
    job = next(one for one in yaml.safe_load_all(shown) if one["metadata"]["name"] == "restore-etcd-0")
    pod = job["spec"]["template"]["spec"]
    orders = {one["name"]: one["command"] for one in (*pod["initContainers"], *pod["containers"])}
    folder, snapshot = tmp_path / "data", tmp_path / "snapshot.db"
    file = str(DEPLOY / "kubernetes/restore/base/restore.py")
    values = {"STAMP": STAMP, "MEMBER": "etcd-0", "DATA": str(folder), "INITIAL_CLUSTER": "etcd-0=https://" + (
        "etcd-0.etcd-peers.codomyrmex-etcd.svc:2380"
    )}  # fmt: skip

    def order(name: str, *others: str) -> tuple[list[str], dict[str, str]]:
        command = []
        for part in (*orders[name], *others):
            for key, value in values.items():
                part = part.replace(f"$({key})", value)
            part = part.replace("/data/", f"{folder}/").replace("/restore/restore.py", file)
            command.append(sys.executable if part == "python" else part)
        return command, {"PATH": f"{programs}:{os.environ['PATH']}", **values}

    def done(name: str, command: list[str] | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        own, environment = order(name)
        return subprocess.run(command or own, env=environment, input=stdin, capture_output=True, check=False)

    binary = str(programs / "server")
    async with EmbeddedEtcd(binary=binary, data_dir=folder / "etcd") as own:
        async with Session(endpoints=own.endpoint, session_ttl=5) as session, DistributedLock("x", session) as last:
            saved = await asyncio.to_thread(run, programs, "backup.sh", str(snapshot), endpoint=own.endpoint)
            assert saved.returncode == 0, saved.stderr
            assert snapshot.stat().st_mode & 0o777 == 0o600
        named = subprocess.run((sys.executable, file, "sha256", str(snapshot)), capture_output=True, check=True)
        values["SHA256"] = named.stdout.decode().strip()
        refused = done("receive")
        assert refused.returncode == 1 and b"etcd-0: etcd runs on this volume: scale" in refused.stderr
    command, environment = order("receive")
    prepare = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        sent = [sys.executable, file, "receive"]
        refused = done("receive", sent, snapshot.read_bytes()[:-100])
        assert refused.returncode == 1 and b"not a whole snapshot" in refused.stderr and prepare.poll() is None
        assert done("receive", sent, snapshot.read_bytes()).returncode == 0
        assert await asyncio.to_thread(prepare.wait, 20) == 0
    finally:
        prepare.kill()
        prepare.wait()
    for name in ("restore", "exchange"):
        made = done(name)
        assert made.returncode == 0, made.stderr
    assert (folder / f"etcd.{STAMP}/member/snap/db").exists()
    async with EmbeddedEtcd(binary=binary, data_dir=folder / "etcd") as own:  # noqa: SIM117
        async with Session(endpoints=own.endpoint, session_ttl=5) as session:
            async with LockManager(session).acquire("x", timeout=20) as grant:
                assert grant.token > last.token + 10_000 * (int(STAMP) - 1)


# Backups


def test_a_backup_is_its_owners_alone_and_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, folder = tmp_path / "snapshot.db", tmp_path / "backups"
    snapshot.write_bytes(WHOLE)
    folder.mkdir()
    for number in range(operate.KEPT + 2):
        (folder / f"etcd-20200101T0000{number:02}Z.db").write_bytes(b"old")
    (folder / "etcd-20200101T000000Z.partial").write_bytes(b"of a run that was killed")
    steps = []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(operate.os, "fsync", lambda number: steps.append("fsync") or sync(number))
    monkeypatch.setattr(Path, "rename", lambda self, target: steps.append("rename") or rename(self, target))
    before = os.umask(0o022)
    try:
        operate.rotate(snapshot, folder)
    finally:
        os.umask(before)
    assert steps == ["fsync", "rename", "fsync"]
    kept = sorted(folder.iterdir())
    assert len(kept) == operate.KEPT and all(path.suffix == ".db" for path in kept)
    assert kept[-1].read_bytes() == WHOLE and kept[-1].stat().st_mode & 0o777 == 0o600
