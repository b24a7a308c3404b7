"""Endpoints at which no sound etcd speaks: each ends in an ``EtcdError`` of ours, in time, with a text that helps.

Every transport of the settings is tried, by opening a session and by the keepalive's client. The words that a text must
have are asked of ``native`` alone, which knows the reason; ``grpc`` and ``gateway`` are asked for the endpoint.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from codomyrmex.concurrency import EmbeddedEtcd, EtcdError, Session
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.settings import EtcdSettings
from tests import endpoints
from tests.endpoints import WrongServer
from tests.helpers import eventually
from tests.integration.test_security import Certificates, TlsEtcd

_LIMIT = 0.6  # seconds for opening a session, and for a call of the keepalive
_SLACK = 3.0  # seconds that a busy machine may take longer

Settings = dict[str, Any]


class Around(NamedTuple):
    """The surroundings of a wrong endpoint: an etcd, an authority and its file, and an etcd that wants TLS."""

    plain: str
    tls: str
    authority: trustme.CA
    ca_file: Path


class Wrong(NamedTuple):
    """A wrong endpoint: ``serve`` gives the settings, and ``words`` is a pattern that the error's text must match.

    ``applied`` is "no" where no request can have reached a server that understands it.
    """

    serve: Callable[[Around], AbstractAsyncContextManager[tuple[Settings, WrongServer | None]]]
    words: str
    applied: str = ""


def _served(
    behave: endpoints.Behaviour, scheme: str = "http"
) -> Callable[[Around], AbstractAsyncContextManager[tuple[Settings, WrongServer | None]]]:
    """A server without TLS, given with this scheme."""

    @asynccontextmanager
    async def serve(around: Around) -> AsyncIterator[tuple[Settings, WrongServer | None]]:
        async with WrongServer(behave) as server:
            yield {"endpoints": f"{scheme}://127.0.0.1:{server.port}"}, server

    return serve


def _secured(
    behave: endpoints.Behaviour, *names: str, alpn: tuple[str, ...] = ("h2", "http/1.1"), known: bool = True
) -> Callable[[Around], AbstractAsyncContextManager[tuple[Settings, WrongServer | None]]]:
    """A server with a certificate for ``names``, from the authority of the settings if it is a ``known`` one."""

    @asynccontextmanager
    async def serve(around: Around) -> AsyncIterator[tuple[Settings, WrongServer | None]]:
        issuer = around.authority if known else trustme.CA()
        async with WrongServer(behave, endpoints.server_context(issuer, *names, alpn=alpn)) as server:
            yield {"endpoints": f"https://127.0.0.1:{server.port}", "ca_file": around.ca_file}, server

    return serve


def _fixed(
    settings: Callable[[Around], Settings],
) -> Callable[[Around], AbstractAsyncContextManager[tuple[Settings, WrongServer | None]]]:
    @asynccontextmanager
    async def serve(around: Around) -> AsyncIterator[tuple[Settings, WrongServer | None]]:
        yield settings(around), None

    return serve


def _free(scheme: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"{scheme}://127.0.0.1:{free.getsockname()[1]}"


_WRONG = {
    "HTTP/1": Wrong(_served(endpoints.http1("200 OK")), "HTTP/1"),
    "HTTP/1, 404": Wrong(_served(endpoints.http1("404 Not Found")), "HTTP/1"),
    "HTTP/1 proxy, 502": Wrong(_served(endpoints.http1("502 Bad Gateway")), "HTTP/1"),
    "HTTP/1 proxy, 503": Wrong(_served(endpoints.http1("503 Service Unavailable")), "HTTP/1"),
    "HTTP/2 proxy, 502": Wrong(_served(endpoints.http2(endpoints.html("502"))), "502"),
    "HTTP/2 proxy, 503": Wrong(_served(endpoints.http2(endpoints.html("503"))), "503"),
    "HTTP/2 page, 200": Wrong(_served(endpoints.http2(endpoints.html("200"))), "text/html|not gRPC"),
    "a gRPC server that is not etcd": Wrong(_served(endpoints.http2(endpoints.no_such_service)), "unknown service"),
    "no message": Wrong(_served(endpoints.http2(endpoints.no_message)), "message|answer"),
    "a garbled message": Wrong(_served(endpoints.http2(endpoints.garbled_message)), "message|answer"),
    "an endless message": Wrong(_served(endpoints.http2(endpoints.endless_message)), "message|large|long|size"),
    "GOAWAY": Wrong(_served(endpoints.http2(endpoints.goaway)), "closed|ended|GOAWAY|ENHANCE_YOUR_CALM", "no"),
    "REFUSED_STREAM": Wrong(_served(endpoints.http2(endpoints.refused_stream)), "refused", "no"),
    "HTTP/2 without an answer": Wrong(
        _served(endpoints.http2(endpoints.nothing)), "within|in time|timed out|no answer"
    ),
    "TLS etcd as http": Wrong(_fixed(lambda around: {"endpoints": around.tls.replace("https:", "http:")}), "https://"),
    "plain etcd as https": Wrong(
        _fixed(lambda around: {"endpoints": around.plain.replace("http:", "https:")}), "TLS.*http://127", "no"
    ),
    "HTTP/1 as https": Wrong(_served(endpoints.bad_request, "https"), "TLS.*http://127", "no"),
    "no certificate of our own": Wrong(
        _fixed(lambda around: {"endpoints": around.tls, "ca_file": around.ca_file}), "cert_file"
    ),
    "a certificate for another name": Wrong(
        _secured(endpoints.http2(endpoints.nothing), "elsewhere.test"), "certificate", "no"
    ),
    "another authority": Wrong(
        _secured(endpoints.http2(endpoints.nothing), "127.0.0.1", known=False), "certificate", "no"
    ),
    "TLS without ALPN": Wrong(
        _secured(endpoints.http1("404 Not Found"), "127.0.0.1", alpn=()), r"ALPN|HTTP/2|\bh2\b", "no"
    ),
    "TLS with ALPN for HTTP/1": Wrong(
        _secured(endpoints.http1("404 Not Found"), "127.0.0.1", alpn=("http/1.1",)), r"ALPN|HTTP/2|\bh2\b", "no"
    ),
    "TLS with HTTP/2 but without ALPN": Wrong(
        _secured(endpoints.http2(endpoints.nothing), "127.0.0.1", alpn=()), "ALPN", "no"
    ),
    "HTTP/2 proxy with TLS, 502": Wrong(_secured(endpoints.http2(endpoints.html("502")), "127.0.0.1"), "502"),
    "an oversized frame": Wrong(_served(endpoints.oversized_frame), "frame|HTTP/2"),
    "garbage": Wrong(_served(endpoints.garbage), "frame|HTTP/2"),
    "garbage as https": Wrong(_served(endpoints.garbage, "https"), "TLS", "no"),
    "nothing listens": Wrong(_fixed(lambda around: {"endpoints": _free("http")}), "refused|Connect call failed", "no"),
    "silence": Wrong(_served(endpoints.silent), "within|in time|timed out|no answer"),
    "silence as https": Wrong(
        _served(endpoints.silent, "https"), "TLS|handshake|within|in time|timed out|no answer", "no"
    ),
    "a byte at a time": Wrong(_served(endpoints.dripping), "HTTP/1"),
    "closed at once": Wrong(_served(endpoints.closing), "closed|ended|reset|broke"),
    "closed at once, as https": Wrong(_served(endpoints.closing, "https"), "TLS", "no"),
    "closed after a request": Wrong(_served(endpoints.closing_later), "closed|ended|reset|broke"),
    "a name that DNS denies": Wrong(
        _fixed(lambda around: {"endpoints": "http://no-such-name.invalid:2379"}),
        "resol|DNS|name .*known|no address",
        "no",
    ),
}
_FAULTS = {
    ("grpc", "no message", "session"): "gRPC logs an answer without a message, and keeps the connection",
    ("grpc", "a garbled message", "session"): "gRPC logs an answer that cannot be parsed, and keeps the connection",
    ("grpc", "a garbled message", "keepalive"): "gRPC logs an answer that cannot be parsed",
    ("gateway", "a byte at a time", "keepalive"): "the time limit begins anew with each byte",
}


@pytest.fixture(scope="module")
def around(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Around]:
    folder = tmp_path_factory.mktemp("wrong")
    server = TlsEtcd(folder, Certificates(folder))
    authority = trustme.CA()
    ca_file = folder / "authorities.pem"
    ca_file.write_bytes((folder / "ca.pem").read_bytes() + authority.cert_pem.bytes())
    yield Around(etcd.endpoint, server.url, authority, ca_file)
    server.stop()


class Leftovers:
    """The tasks, threads and sockets of this process, to be compared with those of a later moment.

    gRPC's own thread and its sockets stay, so of ``grpc`` only the tasks count.
    """

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._before = self._now()

    def _now(self) -> set[object]:
        tasks: set[object] = {task for task in asyncio.all_tasks() if not task.done()}
        if self._transport == "grpc":
            return tasks
        # asyncio's own threads for blocking calls stay until the loop ends.
        threads = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
        return tasks | threads | _sockets()

    async def none(self) -> None:
        """Wait until nothing is left over."""
        await eventually(lambda: not self._now() - self._before, 3)


def _sockets() -> set[object]:
    found: set[object] = set()
    for file in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{file}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], transport: str) -> bool:
    """True if nothing is logged as a warning, and nothing is printed; gRPC prints TLS failures by itself."""
    gc.collect()  # tells of exceptions that were not retrieved, and of what was not closed
    assert [record.getMessage() for record in caplog.records if record.levelname not in ("DEBUG", "INFO")] == []
    printed = capfd.readouterr()
    return transport == "grpc" or (printed.out, printed.err) == ("", "")


class Told(NamedTuple):
    """The text and ``applied`` of an error, which would itself keep the objects in its traceback alive."""

    text: str
    applied: str


async def _open(settings: EtcdSettings) -> Told:
    try:
        await Session(settings).open()
    except EtcdError as error:
        return Told(str(error), error.applied)
    raise AssertionError("the session is open")


async def _renew(settings: EtcdSettings) -> Told:
    transport = transport_for(settings)
    client = transport.lease_client()
    try:
        await asyncio.to_thread(client.renew, 1, _LIMIT)
    except EtcdError as error:
        return Told(str(error), error.applied)
    finally:
        client.close()
        await transport.close()
    raise AssertionError("the lease is renewed")


def _check(wrong: Wrong, told: Told, settings: EtcdSettings, transport: str) -> None:
    assert settings.endpoints[0] in told.text
    assert "Traceback" not in told.text and "object at 0x" not in told.text and len(told.text) < 1_000
    if transport == "native":
        assert re.search(wrong.words, told.text, re.IGNORECASE), told
        assert not wrong.applied or told.applied == wrong.applied, told


@pytest.mark.parametrize("attempt", ["session", "keepalive"])
@pytest.mark.parametrize("case", _WRONG)
async def test_a_wrong_endpoint_is_told_in_time_and_leaves_nothing_behind(
    around: Around,
    transport: str,
    case: str,
    attempt: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if why := _FAULTS.get((transport, case, attempt)):
        request.applymarker(pytest.mark.xfail(reason=why))
    gc.collect()
    caplog.clear()
    leftovers = Leftovers(transport)
    wrong = _WRONG[case]
    async with wrong.serve(around) as (options, server):
        settings = EtcdSettings(**options, transport=transport, dial_timeout=_LIMIT, request_timeout=_LIMIT)
        async with asyncio.timeout(_LIMIT + _SLACK):
            told = await (_open(settings) if attempt == "session" else _renew(settings))
        _check(wrong, told, settings, transport)
        if server:
            if transport == "grpc":
                gc.collect()  # a call of gRPC keeps its connection
            await eventually(lambda: server.connections == 0, 3)
    await leftovers.none()
    assert quiet(caplog, capfd, transport)
