"""etcd over its HTTP/JSON gateway, where HTTP/2 does not get through (extra ``gateway``).

Of etcd3-py only ``call_rpc`` is used, which sends one request and keeps no state: messages are our own, in protobuf's
JSON form. What is dearer than over gRPC: every value travels in base64, every call is a request of its own, and each
watch keeps a connection of its own.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
import semantic_version
from etcd3 import AioClient, Client
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Tls, Token
from codomyrmex.concurrency.etcd.transports.base import Calls, LeaseCalls, refused_as_stale
from codomyrmex.concurrency.etcd.transports.connections import Link, Links
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage, WatchRequest
from codomyrmex.concurrency.settings import EtcdSettings

_METHODS: dict[str, tuple[str, Any]] = {
    "range": ("/kv/range", pb.RangeResponse),
    "delete": ("/kv/deleterange", pb.DeleteRangeResponse),
    "txn": ("/kv/txn", pb.TxnResponse),
    "grant": ("/lease/grant", pb.LeaseGrantResponse),
    "revoke": ("/lease/revoke", pb.LeaseRevokeResponse),
    "renew": ("/lease/keepalive", pb.LeaseKeepAliveResponse),
    "members": ("/cluster/member/list", pb.MemberListResponse),
    "alarms": ("/maintenance/alarm", pb.AlarmResponse),
    "status": ("/maintenance/status", pb.StatusResponse),
    "authenticate": ("/auth/authenticate", pb.AuthenticateResponse),
}
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)  # gRPC's, by number
_REQUIRE_LEADER = {"Grpc-Metadata-hasleader": "true"}


class _Stateless:
    """Instead of etcd3-py's own: it would ask for the server's version, blocking, and judge the answers by itself."""

    server_version_sem = cluster_version_sem = semantic_version.Version("3.4.0")

    def _retrieve_version(self) -> None:
        """Every etcd since 3.4 has the same paths."""


class _Asking(_Stateless, AioClient):  # type: ignore[misc]
    pass


class _Blocking(_Stateless, Client):  # type: ignore[misc]
    @staticmethod
    def _raise_for_status(resp: Any) -> None:
        """What an answer means is read from ``failures.py``."""


def _body(message: Any) -> io.BytesIO:
    """As a file, since aiohttp sends one of any size piece by piece."""
    return io.BytesIO(json.dumps(MessageToDict(message, preserving_proto_field_name=True)).encode())


def _address(endpoint: str) -> dict[str, Any]:
    parts = urlsplit(endpoint)
    return {"host": parts.hostname, "port": parts.port, "protocol": parts.scheme}


def _answer(method: str, code: int, text: str, endpoint: str) -> Any:
    """The message in an answer; raises what it says went wrong."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise _no_gateway(code, endpoint)
    _raise_if_error(told, endpoint)
    try:
        return ParseDict(told.get("result", told), _METHODS[method][1](), ignore_unknown_fields=True)
    except ParseError:
        raise _no_gateway(code, endpoint) from None


def _no_gateway(code: int, endpoint: str) -> EtcdError:
    if code == 404:
        return EtcdError(
            f"etcd at {endpoint} has no gateway: it was started with --enable-grpc-gateway=false; "
            "start it without, or use transport=grpc"
        )
    text = f"{endpoint} answered {code} with what is not etcd's JSON; is a proxy in between?"
    return EtcdUnavailable(text, applied="unknown", retryable=True)


def _raise_if_error(told: dict[str, Any], endpoint: str) -> None:
    problem = told.get("error")
    if problem:
        # One answer: {"error": text, "code": n}. In a stream: {"error": {"message": text, "grpc_code": n}}.
        inner: dict[str, Any] = problem if isinstance(problem, dict) else {"message": problem, **told}
        number = int(inner.get("grpc_code", inner.get("code", 2)))
        name = _CODES[number] if number < len(_CODES) else "UNKNOWN"
        raise failures.to_error(name, str(inner.get("message", "")), endpoint)


def _failed(error: BaseException, endpoint: str) -> EtcdError:
    if isinstance(error, TimeoutError | requests.Timeout):
        return failures.to_error("DEADLINE_EXCEEDED", "no answer in time", endpoint)
    text = str(error)
    if isinstance(error, aiohttp.ClientSSLError | requests.exceptions.SSLError) and "CERTIFICATE_VERIFY" not in text:
        text = f"Ssl handshake failed: {text}"
    elif isinstance(error, aiohttp.ClientConnectorError) or "Failed to establish a new connection" in text:
        text = f"failed to connect to all addresses: {text}"
    return failures.to_error("UNAVAILABLE", text or type(error).__name__, endpoint)


def _context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    if cert:
        context.load_cert_chain(cert, key)
    return context


class _Sender:
    """The HTTP client of one endpoint, made at its first call."""

    def __init__(self, endpoint: str, credentials: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._client: Any = None

    async def client(self) -> Any:
        if self._client is None:
            client = self._client = _Asking(**_address(self._endpoint))
            its, connector = client.session, aiohttp.TCPConnector(limit=0, ssl=self._credentials or True)
            client.session = aiohttp.ClientSession(connector=connector)
            await its.close()  # it would not check whom it speaks to, nor keep more than thirty connections
        return self._client

    async def close(self) -> None:
        if self._client:
            await self._client.close()


class GatewayTransport(Calls):
    """A ``Transport`` over HTTP/1.1 and JSON. Belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings) -> None:
        super().__init__(settings)
        self._tls = Tls(settings, _context)
        self._links = Links(lambda endpoint: _Sender(endpoint, self._tls.credentials), _Sender.close)

    async def watch(self) -> _GatewayWatchStream:
        link = self._links.to(await self._current_endpoint())
        return _GatewayWatchStream(self._links, link, self._token, self._settings.request_timeout)

    def lease_client(self) -> GatewayLeaseClient:
        return GatewayLeaseClient(self._settings, self._current, self._token)

    async def close(self) -> None:
        await self._links.close()

    async def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        headers = {"Authorization": self._token.value} if self._token.value and method != "authenticate" else {}
        limit = aiohttp.ClientTimeout(total=timeout)
        with self._links.using(self._links.to(endpoint)) as sender:
            client = await sender.client()
            asking = client.call_rpc(
                _METHODS[method][0], _body(request), encode=False, raw=True, headers=headers, timeout=limit
            )
            try:
                async with asking as response:
                    return _answer(method, response.status, await response.text(), endpoint)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _failed(error, endpoint) from None

    def _renewed(self) -> bool:
        renewed = self._tls.refresh()
        if renewed:
            self._links.renew()
        return renewed


class _GatewayWatchStream:
    """Many watches as if on one stream: each is a request whose answer does not end. When one breaks, all do, and the
    reader begins anew as it would with gRPC."""

    def __init__(self, links: Links[_Sender], link: Link[_Sender], token: Token, timeout: float) -> None:
        self.endpoint = link.endpoint
        self._links = links
        self._link = link
        self._open = True
        links.enter(link)
        self._token = token
        self._token_since = token.since
        self._timeout = timeout
        self._messages: asyncio.Queue[WatchMessage | EtcdError] = asyncio.Queue()
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._created = 0

    async def create(self, request: WatchRequest) -> None:
        """Returns when etcd has answered, so that "created" comes in the order of the requests."""
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
        reading = self._reading.pop(watch_id, None)
        if reading:
            reading.cancel()
            self._messages.put_nowait(WatchMessage(watch_id, 0, canceled=True))

    async def receive(self) -> WatchMessage:
        message = await self._messages.get()
        if isinstance(message, EtcdError):
            raise message
        if message.created and message.canceled and refused_as_stale(self._token, self._token_since, message.reason):
            self._token.value = ""
            raise EtcdUnavailable("the watch's auth token expired", retryable=True)
        return message

    def close(self) -> None:
        for reading in self._reading.values():
            reading.cancel()
        self._reading.clear()
        self._messages.put_nowait(EtcdUnavailable("the watch stream was left", retryable=True))
        if self._open:
            self._open = False
            self._links.leave(self._link)

    def _message(self, number: int, told: dict[str, Any]) -> WatchMessage:
        _raise_if_error(told, self.endpoint)
        message = codec.watch_message(ParseDict(told["result"], pb.WatchResponse(), ignore_unknown_fields=True))
        if not (message.created and message.canceled):  # a refused watch keeps the id that says so
            message.watch_id = number
        return message

    async def _read(self, number: int, request: pb.WatchRequest, answered: asyncio.Future[None]) -> None:
        headers = {**_REQUIRE_LEADER, **({"Authorization": self._token.value} if self._token.value else {})}
        forever = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout)
        try:
            client = await self._link.connection.client()
            asking = client.call_rpc("/watch", _body(request), encode=False, raw=True, headers=headers, timeout=forever)
            async with asking as response:
                if response.status != 200:
                    _answer("range", response.status, await response.text(), self.endpoint)
                left = b""
                while chunk := await response.content.readany():
                    *lines, left = (left + chunk).split(b"\n")  # one JSON object on each
                    for line in filter(None, lines):
                        self._messages.put_nowait(self._message(number, json.loads(line)))
                        if not answered.done():
                            answered.set_result(None)
            raise EtcdUnavailable(f"etcd at {self.endpoint} ended a watch", retryable=True)
        except EtcdError as error:
            self._messages.put_nowait(error)
        except Exception as error:  # the connection broke, or an answer is not etcd's: the stream is of no more use
            self._messages.put_nowait(_failed(error, self.endpoint))
        finally:
            if not answered.done():
                answered.set_result(None)


class GatewayLeaseClient(LeaseCalls):
    """Blocking calls on connections of their own, so that a blocked event loop cannot delay them."""

    def __init__(self, settings: EtcdSettings, current: int, token: Token) -> None:
        super().__init__(settings, current, token)
        self._settings = settings
        self._tls = Tls(settings, _context)
        self._clients: dict[str, Any] = {}

    def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        headers = {"Authorization": self._token.value} if self._token.value and method != "authenticate" else {}
        began = time.monotonic()
        try:
            response = self._client(endpoint).call_rpc(
                _METHODS[method][0], _body(request), encode=False, raw=True, headers=headers, timeout=timeout
            )
            return _answer(method, response.status_code, response.text, endpoint)
        except (requests.RequestException, OSError) as error:
            late = time.monotonic() - began >= timeout
            raise _failed(TimeoutError() if late else error, endpoint) from None

    def _renew_files(self) -> None:
        if self._tls.refresh():
            self.close()

    def _client(self, endpoint: str) -> Any:
        client = self._clients.get(endpoint)
        if client is None:
            its = self._settings
            client = self._clients[endpoint] = _Blocking(
                **_address(endpoint),
                cert=(str(its.cert_file), str(its.key_file)) if its.cert_file else (),
                verify=str(its.ca_file) if its.ca_file else True,
            )
            client._session.trust_env = False
        return client

    def close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()
