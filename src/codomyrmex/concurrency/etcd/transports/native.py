"""The transport over our own HTTP/2: one connection per endpoint. ``base.py`` has the part common to all transports.

``http2.py`` holds the protocol, ``native_calls.py`` gRPC's calls; both are without I/O. ``native_link.py`` and
``native_channel.py`` connect them to asyncio, ``native_lease_client.py`` to the keepalive's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Tls, Token, http2_context
from codomyrmex.concurrency.etcd.transports.base import BaseTransport
from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.methods import METHODS, REQUIRE_LEADER, WATCH
from codomyrmex.concurrency.etcd.transports.native_calls import Call, result
from codomyrmex.concurrency.etcd.transports.native_channel import Channel
from codomyrmex.concurrency.etcd.transports.native_lease_client import NativeLeaseClient
from codomyrmex.concurrency.etcd.transports.native_link import Link, reason_of
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage, WatchRequest
from codomyrmex.concurrency.settings import EtcdSettings


class NativeTransport(BaseTransport):
    """A ``Transport`` over gRPC. It belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings, choose: Callable[[int], int]) -> None:
        super().__init__(settings, choose)
        self._tls = Tls(settings, http2_context)
        self._channels = {endpoint: Channel(endpoint, self._tls.credentials) for endpoint in settings.endpoints}

    async def watch(self) -> NativeWatchStream:
        """Open a watch stream."""
        endpoint = await self._current_endpoint()
        try:
            link = await self._link(endpoint, self._settings.request_timeout)
        except EtcdUnavailable:
            self.suspect(endpoint)
            raise
        return NativeWatchStream(endpoint, link, self._token)

    def lease_client(self) -> NativeLeaseClient:
        """A client for the keepalive thread, with connections of its own."""
        return NativeLeaseClient(self._settings, self._endpoints, self._token)

    async def _close_connections(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def _ping(self, endpoint: str, timeout: float) -> None:
        await self._send(endpoint, "ping", Empty(), timeout)

    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        link = self._channels[endpoint].link or await self._link(endpoint, timeout)
        path, response = METHODS[method]
        token = self._token.metadata() if method != "authenticate" else ()
        return result(await link.call(path, token, request.SerializeToString(), timeout), response, endpoint)

    async def _link(self, endpoint: str, limit: float) -> Link:
        """The link for a new call. Raises ``EtcdError``."""
        channel = self._channels[endpoint]
        try:
            return channel.link or await channel.open(limit)
        except OSError as error:  # ``ssl.SSLError`` and ``TimeoutError`` are such
            raise failures.to_error("UNAVAILABLE", f"{NOT_SENT}: {reason_of(error)}", endpoint) from None

    def _reload_tls(self) -> bool:
        renewed = self._tls.refresh()
        if renewed:
            for channel in self._channels.values():
                channel.renew(self._tls.credentials)
        return renewed


class NativeWatchStream:
    """A watch stream. It keeps the token that it was opened with, and ends when that token is stale."""

    def __init__(self, endpoint: str, link: Link, token: Token) -> None:
        self.endpoint = endpoint
        self._link = link
        self._token = token
        self._token_since = token.since
        self._call: Call = link.begin_stream(WATCH, REQUIRE_LEADER + token.metadata())

    async def create(self, request: WatchRequest) -> None:
        """Begin a watch."""
        await self._link.send(self._call, codec.watch_request(request).SerializeToString())

    async def cancel(self, watch_id: int) -> None:
        """End a watch."""
        request = pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))
        await self._link.send(self._call, request.SerializeToString())

    async def receive(self) -> WatchMessage:
        """The next message. Raises ``EtcdError`` when the stream has ended."""
        data = await self._link.receive(self._call)
        if data is None:
            if self._call.status == "OK":
                raise EtcdUnavailable(f"etcd at {self.endpoint} ended the watch stream", retryable=True)
            raise failures.to_error(self._call.status, self._call.details, self.endpoint)
        try:
            message = codec.watch_message(pb.WatchResponse.FromString(data))
        except DecodeError:
            raise failures.to_error("INTERNAL", "its watch message cannot be read", self.endpoint) from None
        self._token.check_watch(self._token_since, message)
        return message

    def close(self) -> None:
        """End the stream and its watches."""
        self._link.cancel(self._call)
