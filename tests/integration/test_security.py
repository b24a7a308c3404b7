"""Users and TLS, against a real etcd with auth on and with certificates."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from codomyrmex.concurrency import (
    DistributedLock,
    EmbeddedEtcd,
    EtcdAuthError,
    EtcdError,
    EtcdUnavailable,
    Grant,
    LockLost,
    LockManager,
    Rate,
    RateLimiter,
    Session,
)
from codomyrmex.concurrency.etcd.embedded import find_etcd
from codomyrmex.concurrency.etcd.transports.native import NativeTransport
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually, gateway, queue_of

PASSWORD = "correct horse"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedEtcd]:
    """An etcd with auth on, short-lived tokens, and a user that can touch /fleet/ alone."""
    server = EmbeddedEtcd(args=["--auth-token=simple", "--auth-token-ttl=2"])
    server.start_sync()
    for user, role in (("root", "root"), ("agent", "agent")):
        gateway(server.endpoint, "auth/user/add", name=user, password=PASSWORD)
        gateway(server.endpoint, "auth/role/add", name=role)
        gateway(server.endpoint, "auth/user/grant", user=user, role=role)
    permission = {"permType": 2, "key": b64("/fleet/"), "range_end": b64("/fleet0")}
    gateway(server.endpoint, "auth/role/grant", name="agent", perm=permission)
    gateway(server.endpoint, "auth/enable")
    yield server
    server.stop_sync()


@pytest.mark.long
async def test_tokens_that_expired_are_replaced(guarded: EmbeddedEtcd) -> None:
    """Use prolongs a token's life, so what uses it must pause for longer than that."""
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    async with Session(**settings, session_ttl=9) as one, Session(**settings, session_ttl=9) as two:
        old, new = DistributedLock("old", one), DistributedLock("new", one)
        grants = [await old.acquire(), await new.acquire()]
        first = core_of(two).transport._token.value
        waiting = asyncio.create_task(DistributedLock("old", two).acquire())
        await queue_of(one, "old", 2)
        await asyncio.sleep(10)  # more than a lease without a keepalive would have
        assert one.alive and two.alive and not any(grant.lost.is_set() for grant in grants)
        late = asyncio.create_task(DistributedLock("new", two).acquire())  # its watch meets a stale stream
        await queue_of(one, "new", 2)
        await old.release()
        await new.release()
        await asyncio.wait_for(asyncio.gather(waiting, late), 5)
        assert core_of(two).transport._token.value != first


async def test_an_agents_role_is_enough_for_reservations(guarded: EmbeddedEtcd) -> None:
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    async with Session(**settings) as one, Session(**settings) as two:
        manager = LockManager(one)
        reservation = await manager.reserve("deploy", paths=["src/"], ttl=60, note="begun")
        opened = LockManager(two).reservation(reservation.handle)
        await opened.renew(note="half done")
        await opened.put("/fleet/data", "written")
        assert [found.note for found in await manager.reservations()] == ["half done"]
        await opened.release()
        assert await manager.reservations() == []
        forced = await manager.reserve("deploy", ttl=60, note="begun")
        lease = int((await manager.reservations())[0].lease, 16)
        await LockManager(two).force_release("deploy", reason="a test")
        assert not await core_of(two).transport.time_to_live(lease)  # it was revoked
        with pytest.raises(LockLost):
            await forced.check()


async def test_an_agents_role_is_enough_for_rate_limits(guarded: EmbeddedEtcd) -> None:
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    async with Session(**settings) as one, Session(**settings) as two:
        limiter, theirs = (RateLimiter("x", Rate(10, per=1), session=session) for session in (one, two))
        async with limiter.reserve(10) as spend:
            spend.used(12)  # taken from etcd
        await theirs.acquire(10, timeout=8)
        await limiter.throttled(60)
        assert (await theirs.info()).paused_until
        assert await theirs.resume()
        await limiter.resize(Rate(20, per=1))
        await theirs.acquire(10, timeout=8)
        await eventually(lambda: _uncounted(limiter))
        await limiter.delete()
        assert (await limiter.info()).uses == ()


async def _uncounted(limiter: RateLimiter) -> bool:
    return not any(use.used for use in (await limiter.info()).uses)


@pytest.mark.long
async def test_a_user_keeps_its_locks_beyond_its_tokens(guarded: EmbeddedEtcd) -> None:
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    async with Session(**settings, session_ttl=3) as one, Session(**settings, session_ttl=3) as two:
        lock = DistributedLock("x", one)
        grant = await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", two).acquire())
        await queue_of(one, "x", 2)
        await asyncio.sleep(6)  # three lifetimes of a token, two of a lease
        assert not grant.lost.is_set() and one.alive and two.alive
        await grant.put("/fleet/data", "1")
        await lock.release()
        await asyncio.wait_for(waiting, 5)
        assert PASSWORD not in repr(one.settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"namespace": "fleet", "username": "agent", "password": "wrong horse"},
        {"namespace": "elsewhere", "username": "agent", "password": PASSWORD},
        {"namespace": "fleet"},
    ],
    ids=["wrong password", "another namespace", "no user"],
)
async def test_who_may_not_is_refused_in_our_words(guarded: EmbeddedEtcd, settings: dict[str, str]) -> None:
    with pytest.raises(EtcdAuthError) as caught:
        async with Session(endpoints=guarded.endpoint, dial_timeout=2, **settings) as session:
            await DistributedLock("x", session).acquire()
    assert "check user, password, role" in str(caught.value) and "horse" not in str(caught.value)


@pytest.mark.long
async def test_a_password_that_is_changed_costs_no_lock(guarded: EmbeddedEtcd, tmp_path: Path) -> None:
    """The file may be replaced some time after the password; until then new tokens are refused."""
    file = tmp_path / "password"
    file.write_text("first\n")
    root = gateway(guarded.endpoint, "auth/authenticate", name="root", password=PASSWORD)["token"]
    gateway(guarded.endpoint, "auth/user/add", root, name="changing", password="first")
    gateway(guarded.endpoint, "auth/user/grant", root, user="changing", role="agent")
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "changing", "password_file": file}
    async with Session(**settings, session_ttl=6) as session:
        lock = DistributedLock("changing", session, on_loss="notify")
        grant = await lock.acquire()
        root = gateway(guarded.endpoint, "auth/authenticate", name="root", password=PASSWORD)["token"]
        gateway(guarded.endpoint, "auth/user/changepw", root, name="changing", password="second")
        with pytest.raises(EtcdAuthError):
            await grant.put("/fleet/changing", "too early")
        await asyncio.sleep(1)
        file.write_text("second\n")
        await grant.put("/fleet/changing", "again")
        await asyncio.sleep(7)
        assert session.alive and not grant.lost.is_set()
        await lock.release()
        file.unlink()
    with pytest.raises(EtcdAuthError, match="cannot read the password file"):
        await Session(**settings).open()


@pytest.mark.parametrize("transport", ["native", "grpc", "gateway"])
async def test_https_on_a_plain_port_and_a_user_without_auth_get_a_hint(etcd: EmbeddedEtcd, transport: str) -> None:
    secure = etcd.endpoint.replace("http:", "https:")
    with pytest.raises(EtcdUnavailable, match=f"does it speak TLS there.*{etcd.endpoint}"):
        await Session(endpoints=secure, transport=transport, dial_timeout=1.5).open()
    with pytest.raises(EtcdError, match="unset CODOMYRMEX_ETCD_USERNAME"):
        await Session(endpoints=etcd.endpoint, transport=transport, username="u", password="p", dial_timeout=2).open()


class Certificates:
    def __init__(self, folder: Path, not_after: datetime | None = None) -> None:
        folder.mkdir(exist_ok=True)
        authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        issued = authority.issue_cert("127.0.0.1", "localhost", not_after=not_after)
        authority.cert_pem.write_to_path(self.ca)
        issued.private_key_pem.write_to_path(self.key)
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(self.cert, append=number > 0)


class TlsEtcd:
    """An etcd that speaks TLS only and asks its clients for certificates."""

    def __init__(self, folder: Path, its: Certificates) -> None:
        self.url = f"https://127.0.0.1:{_port()}"
        self._command = [
            str(find_etcd()),
            f"--data-dir={folder / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls=http://127.0.0.1:{_port()}",
            f"--trusted-ca-file={its.ca}",
            f"--cert-file={its.cert}",
            f"--key-file={its.key}",
            "--client-cert-auth",
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


async def test_roles_that_are_changed_meanwhile_cost_no_call(guarded: EmbeddedEtcd) -> None:
    """etcd refuses a call that it had checked before the change, with a text of its own."""
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    token = gateway(guarded.endpoint, "auth/authenticate", name="root", password=PASSWORD)["token"]
    ended = threading.Event()

    def change() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            gateway(guarded.endpoint, "auth/role/add", token=token, name=f"passing-{number}")
            ended.wait(0.4)  # a login is tried again by etcd as long as its users change

    async with Session(**settings) as session, DistributedLock("changed", session) as grant:
        changing = asyncio.create_task(asyncio.to_thread(change))
        try:
            end = asyncio.get_running_loop().time() + 3
            while asyncio.get_running_loop().time() < end:
                await asyncio.gather(*(grant.put(f"/fleet/changed/{number}", "x") for number in range(50)))
        finally:
            ended.set()
        await changing


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Certificates]]:
    folder = tmp_path_factory.mktemp("tls")
    certificates = Certificates(folder)
    server = TlsEtcd(folder, certificates)
    yield server.url, certificates
    server.stop()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_mutual_tls_works_end_to_end(secured: tuple[str, Certificates]) -> None:
    url, its = secured
    settings = {"ca_file": its.ca, "cert_file": its.cert, "key_file": its.key, "dial_timeout": 10}
    async with Session(endpoints=url, **settings) as session, DistributedLock("x", session) as grant:
        await grant.put("/codomyrmex/tls", "ok")


async def test_a_foreign_authority_is_refused_and_a_missing_file_named(
    secured: tuple[str, Certificates], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    url, its = secured
    foreign = Certificates(tmp_path)
    with pytest.raises(EtcdError) as caught:
        await Session(endpoints=url, ca_file=foreign.ca, dial_timeout=2).open()
    assert url in str(caught.value)
    with pytest.raises(EtcdError) as caught:
        await Session(endpoints=url, ca_file=its.ca, dial_timeout=2).open()  # no certificate of its own
    assert url in str(caught.value)
    # Over the gateway a server that wants TLS is not to be told from one that crashed.
    hint = None if pytestconfig.getoption("--transport") == "gateway" else f"does it speak TLS there.*{url}"
    with pytest.raises(EtcdUnavailable, match=hint):
        await Session(endpoints=url.replace("https:", "http:"), dial_timeout=2).open()
    with pytest.raises(EtcdError, match="cannot use the TLS file"):
        await Session(endpoints=url, ca_file=tmp_path / "absent.pem", dial_timeout=2).open()


async def test_certificates_and_authority_may_be_replaced_under_a_holder(tmp_path: Path) -> None:
    its = Certificates(tmp_path)
    server = TlsEtcd(tmp_path, its)
    try:
        files = {"ca_file": its.ca, "cert_file": its.cert, "key_file": its.key}
        async with Session(endpoints=server.url, **files, dial_timeout=10, session_ttl=15) as session:
            grant = await DistributedLock("x", session).acquire()
            server.stop()
            Certificates(tmp_path)  # another authority, in the same files
            server.start()
            await eventually(lambda: _written(grant), 10)
            left = session.deadline()
            await eventually(lambda: session.deadline() > left, 10)  # the keepalive has found its way too
            assert not grant.lost.is_set()
    finally:
        server.stop()


async def test_replacing_the_files_harms_nothing_that_is_under_way(tmp_path: Path) -> None:
    """Any call may fail at that moment, whatever for: calls go on, waiters wait on, and the watches live."""
    its = Certificates(tmp_path)
    server = TlsEtcd(tmp_path, its)
    files = {"ca_file": its.ca, "cert_file": its.cert, "key_file": its.key}
    try:
        async with (
            Session(endpoints=server.url, **files, dial_timeout=10) as session,
            Session(endpoints=server.url, **files, dial_timeout=10) as other,
        ):
            blocking = DistributedLock("x", other)
            await blocking.acquire()
            waiting = [asyncio.create_task(_hold(session, "x")) for _ in range(20)]
            await queue_of(other, "x", 21)
            stream = core_of(session).hub._stream
            for round_ in range(3):
                for file in (its.ca, its.cert, its.key):
                    file.write_bytes(file.read_bytes())
                calls = [asyncio.create_task(_hold(session, f"{round_}-{number}")) for number in range(50)]
                await asyncio.sleep(0)
                with pytest.raises(EtcdError, match="lease not found"):
                    await core_of(session).transport.txn((), (Put(b"/codomyrmex/any", b"", 1),))
                await asyncio.wait_for(asyncio.gather(*calls), 10)
            transport = core_of(session).transport
            assert core_of(session).hub._stream is stream, "the stream under way was left alone"
            assert _old_connections(transport) == 1, "of the old connections only the stream's is open"
            await blocking.release()
            await asyncio.wait_for(asyncio.gather(*waiting), 10)
            core_of(session).hub.leave(server.url)
            await eventually(lambda: not _old_connections(transport))
            assert session.alive and not session.lost.is_set()
    finally:
        server.stop()


def _old_connections(transport: Any) -> int:
    """The number of connections that take no new calls."""
    if isinstance(transport, NativeTransport):
        return sum(not link.usable for channel in transport._channels.values() for link in channel._links)
    return len(transport._connections._old)


async def _hold(session: Session, name: str) -> None:
    async with DistributedLock(name, session):
        pass


async def _written(grant: Grant) -> bool:
    try:
        await grant.put("/codomyrmex/tls", "ok")
    except EtcdUnavailable:
        return False
    return True


async def test_an_expired_certificate_is_called_one(tmp_path: Path) -> None:
    its = Certificates(tmp_path, datetime.now(UTC) - timedelta(days=1))
    server = TlsEtcd(tmp_path, its)
    try:
        with pytest.raises(EtcdError, match="certificate has expired"):
            await Session(endpoints=server.url, ca_file=its.ca, dial_timeout=3).open()
    finally:
        server.stop()
