"""Users and TLS, against a real etcd with auth on and with certificates."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdAuthError, EtcdError, Session
from codomyrmex.concurrency.etcd.embedded import find_etcd
from tests.helpers import queue_of

PASSWORD = "correct horse"


def call(endpoint: str, path: str, **body: object) -> None:
    request = urllib.request.Request(f"{endpoint}/v3/{path}", json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=5).read()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedEtcd]:
    """An etcd with auth on, short-lived tokens, and a user that can touch /fleet/ alone."""
    server = EmbeddedEtcd(args=["--auth-token=simple", "--auth-token-ttl=2"])
    server.start_sync()
    for user, role in (("root", "root"), ("agent", "agent")):
        call(server.endpoint, "auth/user/add", name=user, password=PASSWORD)
        call(server.endpoint, "auth/role/add", name=role)
        call(server.endpoint, "auth/user/grant", user=user, role=role)
    permission = {"permType": 2, "key": b64("/fleet/"), "range_end": b64("/fleet0")}
    call(server.endpoint, "auth/role/grant", name="agent", perm=permission)
    call(server.endpoint, "auth/enable")
    yield server
    server.stop_sync()


async def test_tokens_that_expired_are_replaced(guarded: EmbeddedEtcd) -> None:
    """Use prolongs a token's life, so what uses it must pause for longer than that."""
    settings = {"endpoints": guarded.endpoint, "namespace": "fleet", "username": "agent", "password": PASSWORD}
    async with Session(**settings, session_ttl=9) as one, Session(**settings, session_ttl=9) as two:
        old, new = DistributedLock("old", one), DistributedLock("new", one)
        grants = [await old.acquire(), await new.acquire()]
        first = two.transport._token.value
        waiting = asyncio.create_task(DistributedLock("old", two).acquire())
        await queue_of(one, "old", 2)
        await asyncio.sleep(10)  # more than a lease without a keepalive would have
        assert one.alive and two.alive and not any(grant.lost.is_set() for grant in grants)
        late = asyncio.create_task(DistributedLock("new", two).acquire())  # its watch meets a stale stream
        await queue_of(one, "new", 2)
        await old.release()
        await new.release()
        await asyncio.wait_for(asyncio.gather(waiting, late), 5)
        assert two.transport._token.value != first


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


class Certificates:
    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        issued = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.ca)
        issued.private_key_pem.write_to_path(self.key)
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(self.cert, append=number > 0)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Certificates]]:
    """An etcd that speaks TLS only and asks its clients for certificates."""
    folder = tmp_path_factory.mktemp("tls")
    certificates = Certificates(folder)
    url = f"https://127.0.0.1:{_port()}"
    command = [
        str(find_etcd()),
        f"--data-dir={folder / 'data'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls=http://127.0.0.1:{_port()}",
        f"--trusted-ca-file={certificates.ca}",
        f"--cert-file={certificates.cert}",
        f"--key-file={certificates.key}",
        "--client-cert-auth",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        yield url, certificates
        server.kill()


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
    secured: tuple[str, Certificates], tmp_path: Path
) -> None:
    url, its = secured
    foreign = Certificates(tmp_path)
    with pytest.raises(EtcdError) as caught:
        await Session(endpoints=url, ca_file=foreign.ca, dial_timeout=2).open()
    assert url in str(caught.value)
    with pytest.raises(EtcdError) as caught:
        await Session(endpoints=url, ca_file=its.ca, dial_timeout=2).open()  # no certificate of its own
    assert url in str(caught.value)
    with pytest.raises(EtcdError, match="cannot read a TLS file"):
        await Session(endpoints=url, ca_file=tmp_path / "absent.pem", dial_timeout=2).open()
