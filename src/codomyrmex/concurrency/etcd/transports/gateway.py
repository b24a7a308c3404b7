"""The transport over etcd's HTTP/JSON gateway, for networks that block HTTP/2 (extra ``gateway``).

Of etcd3-py only ``call_rpc`` is used, which sends one request and keeps no state. ``gateway_messages.py`` makes the
messages, in protobuf's JSON form. The gateway costs more than gRPC: every value is sent in base64, every call is a
request of its own, and each watch keeps a connection of its own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
import semantic_version
from etcd3 import AioClient, Client

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec
from codomyrmex.concurrency.etcd.transports import gateway_messages as messages
from codomyrmex.concurrency.etcd.transports.addresses import addresses_of
from codomyrmex.concurrency.etcd.transports.auth import Tls, Token, ssl_context
from codomyrmex.concurrency.etcd.transports.base import BaseLeaseClient, BaseTransport
from codomyrmex.concurrency.etcd.transports.connections import Connection, Connections
from codomyrmex.concurrency.etcd.transports.endpoints import Endpoints
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage, WatchRequest
from codomyrmex.concurrency.etcd.transports.resolver import Resolver
from codomyrmex.concurrency.settings import EtcdSettings

_REQUIRE_LEADER = {"Grpc-Metadata-hasleader": "true"}
_IDLE = 20.0  # seconds for which a connection without requests is kept; pings come more often


class _NoVersionCheck:
    """A mixin that keeps etcd3-py's clients from asking for the server's version by a blocking call."""

    server_version_sem = cluster_version_sem = semantic_version.Version("3.4.0")

    def _retrieve_version(self) -> None:
        """Do nothing: every etcd since 3.4 has the same paths."""


class _AsyncClient(_NoVersionCheck, AioClient):  # type: ignore[misc]
    pass


class _BlockingClient(_NoVersionCheck, Client):  # type: ignore[misc]
    @staticmethod
    def _raise_for_status(resp: Any) -> None:
        """Do nothing: ``failures.py`` gives the meaning of an answer."""


def _address(endpoint: str) -> dict[str, Any]:
    parts = urlsplit(endpoint)
    return {"host": parts.hostname, "port": parts.port, "protocol": parts.scheme}


def _version_url(endpoint: str) -> str:
    """The address of a member's version, which needs no user and which the member answers by itself."""
    return f"{endpoint}/version"


class _Sender:
    """The HTTP client of one endpoint, made at its first call."""

    def __init__(self, endpoint: str, credentials: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._client: Any = None

    async def client(self) -> Any:
        """The client, made at its first use."""
        if self._client is None:
            client = self._client = _AsyncClient(**_address(self._endpoint))
            its = client.session
            connector = aiohttp.TCPConnector(
                limit=0,
                ssl=self._credentials or True,
                resolver=Resolver(addresses_of(self._endpoint)),
                use_dns_cache=False,
                keepalive_timeout=_IDLE,
            )
            client.session = aiohttp.ClientSession(connector=connector)
            await its.close()  # it would not check the server's certificate, nor keep more than thirty connections
        return self._client

    async def close(self) -> None:
        """Close the client."""
        if self._client:
            await self._client.close()


class GatewayTransport(BaseTransport):
    """A ``Transport`` over HTTP/1.1 and JSON. It belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings, choose: Callable[[int], int]) -> None:
        super().__init__(settings, choose)
        self._tls = Tls(settings, ssl_context)
        self._connections = Connections(lambda endpoint: _Sender(endpoint, self._tls.credentials), _Sender.close)

    async def watch(self) -> _GatewayWatchStream:
        """Open a watch stream."""
        connection = self._connections.to(await self._current_endpoint())
        return _GatewayWatchStream(self._connections, connection, self._token, self._settings.request_timeout)

    def lease_client(self) -> GatewayLeaseClient:
        """A client for the keepalive thread, with connections of its own."""
        return GatewayLeaseClient(self._settings, self._endpoints, self._token)

    async def _close_connections(self) -> None:
        await self._connections.close()

    async def _ping(self, endpoint: str, timeout: float) -> None:
        limit = aiohttp.ClientTimeout(total=timeout)
        with self._connections.using(self._connections.to(endpoint)) as sender:
            client = await sender.client()
            try:
                async with client.session.get(_version_url(endpoint), timeout=limit) as response:
                    await response.read()  # so that the connection can be used again
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise messages.failure(error, endpoint) from None

    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        headers = {"Authorization": self._token.value} if self._token.value and method != "authenticate" else {}
        limit = aiohttp.ClientTimeout(total=timeout)
        with self._connections.using(self._connections.to(endpoint)) as sender:
            client = await sender.client()
            asking = client.call_rpc(
                messages.path(method), messages.body(request), encode=False, raw=True, headers=headers, timeout=limit
            )
            try:
                async with asking as response:
                    return messages.answer(method, response.status, await response.text(), endpoint)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise messages.failure(error, endpoint) from None

    def _reload_tls(self) -> bool:
        renewed = self._tls.refresh()
        if renewed:
            self._connections.renew()
        return renewed


class _GatewayWatchStream:
    """A watch stream that consists of many requests: each watch is a request whose answer does not end.

    When one watch breaks, the whole stream ends, and its reader opens a new one, as with gRPC.
    """

    def __init__(
        self, connections: Connections[_Sender], connection: Connection[_Sender], token: Token, timeout: float
    ) -> None:
        self.endpoint = connection.endpoint
        self._connections = connections
        self._connection = connection
        self._open = True
        connections.enter(connection)
        self._token = token
        self._token_since = token.since
        self._timeout = timeout
        self._messages: asyncio.Queue[WatchMessage | EtcdError] = asyncio.Queue()
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._created = 0

    async def create(self, request: WatchRequest) -> None:
        """Create a watch and wait for etcd's answer, so that "created" messages come in the order of the requests."""
        self._created += 1
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._created
        self._reading[number] = asyncio.create_task(self._read(number, codec.watch_request(request), answered))
        try:
            async with asyncio.timeout(self._timeout):
                await answered
        except TimeoutError:
            raise EtcdUnavailable(f"etcd at {self.endpoint} did not begin a watch", retryable=True) from None

    async def cancel(self, watch_id: int) -> None:
        """End a watch."""
        reading = self._reading.pop(watch_id, None)
        if reading:
            reading.cancel()
            self._messages.put_nowait(WatchMessage(watch_id, 0, canceled=True))

    async def receive(self) -> WatchMessage:
        """The next message. Raises ``EtcdError`` when the stream has ended."""
        message = await self._messages.get()
        if isinstance(message, EtcdError):
            raise message
        self._token.check_watch(self._token_since, message)
        return message

    def close(self) -> None:
        """End the stream and its watches."""
        for reading in self._reading.values():
            reading.cancel()
        self._reading.clear()
        self._messages.put_nowait(EtcdUnavailable("the watch stream was left", retryable=True))
        if self._open:
            self._open = False
            self._connections.leave(self._connection)

    async def _read(self, number: int, request: pb.WatchRequest, answered: asyncio.Future[None]) -> None:
        """Put the messages of one watch into the queue, until the watch ends."""
        headers = {**_REQUIRE_LEADER, **({"Authorization": self._token.value} if self._token.value else {})}
        forever = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout)
        try:
            client = await self._connection.client.client()
            asking = client.call_rpc(
                "/watch", messages.body(request), encode=False, raw=True, headers=headers, timeout=forever
            )
            async with asking as response:
                if response.status != 200:
                    messages.answer("range", response.status, await response.text(), self.endpoint)
                left = b""
                while chunk := await response.content.readany():
                    *lines, left = (left + chunk).split(b"\n")  # one JSON object on each
                    for line in filter(None, lines):
                        self._messages.put_nowait(messages.watch_message(json.loads(line), number, self.endpoint))
                        if not answered.done():
                            answered.set_result(None)
            raise EtcdUnavailable(f"etcd at {self.endpoint} ended a watch", retryable=True)
        except EtcdError as error:
            self._messages.put_nowait(error)
        except Exception as error:  # the connection broke, or an answer is not etcd's: the stream ends
            self._messages.put_nowait(messages.failure(error, self.endpoint))
        finally:
            if not answered.done():
                answered.set_result(None)


class GatewayLeaseClient(BaseLeaseClient):
    """Blocking calls on connections of their own, so that a blocked event loop cannot delay them."""

    def __init__(self, settings: EtcdSettings, endpoints: Endpoints, token: Token) -> None:
        super().__init__(endpoints, token)
        self._settings = settings
        self._tls = Tls(settings, ssl_context)
        self._clients: dict[str, Any] = {}
        self._pings: dict[str, threading.Thread] = {}

    def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        headers = {"Authorization": self._token.value} if self._token.value and method != "authenticate" else {}
        began = time.monotonic()
        try:
            response = self._client(endpoint).call_rpc(
                messages.path(method), messages.body(request), encode=False, raw=True, headers=headers, timeout=timeout
            )
            return messages.answer(method, response.status_code, response.text, endpoint)
        except (requests.RequestException, OSError) as error:
            late = time.monotonic() - began >= timeout
            raise messages.failure(TimeoutError() if late else error, endpoint) from None

    def _ping(self, endpoints: Sequence[str], timeout: float) -> None:
        for endpoint in endpoints:
            if endpoint not in self._pings or not self._pings[endpoint].is_alive():
                # A thread for each: a name that DNS does not answer may hold it for longer than the limit.
                session = self._client(endpoint)._session
                thread = threading.Thread(target=_get_version, args=(session, endpoint, timeout), daemon=True)
                self._pings[endpoint] = thread
                thread.start()

    def _reload_tls(self) -> None:
        if self._tls.refresh():
            self.close()

    def _client(self, endpoint: str) -> Any:
        client = self._clients.get(endpoint)
        if client is None:
            its = self._settings
            client = self._clients[endpoint] = _BlockingClient(
                **_address(endpoint),
                cert=(str(its.cert_file), str(its.key_file)) if its.cert_file else (),
                verify=str(its.ca_file) if its.ca_file else True,
            )
            client._session.trust_env = False
        return client

    def close(self) -> None:
        """Close all connections."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()


def _get_version(session: requests.Session, endpoint: str, timeout: float) -> None:
    with suppress(requests.RequestException, OSError):  # the next ping tries again
        session.get(_version_url(endpoint), timeout=timeout)
