"""The transport over gRPC, with grpcio: one channel per endpoint. ``base.py`` has the part common to all transports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

# gRPC's fork handlers crash a child whose parent was inside gRPC at that moment (seen in one fork of ten). The
# asyncio API of gRPC cannot be used after a fork anyway. Without the handlers, the child can do its other work.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable, UsedElsewhere
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Tls, Token
from codomyrmex.concurrency.etcd.transports.base import BaseLeaseClient, BaseTransport
from codomyrmex.concurrency.etcd.transports.call_timeouts import Call, CallCancelled, CallTimeouts
from codomyrmex.concurrency.etcd.transports.connections import Connection, Connections
from codomyrmex.concurrency.etcd.transports.endpoints import Endpoints
from codomyrmex.concurrency.etcd.transports.methods import METHODS, REQUIRE_LEADER, WATCH
from codomyrmex.concurrency.etcd.transports.protocol import WatchMessage, WatchRequest
from codomyrmex.concurrency.settings import EtcdSettings

T = TypeVar("T")

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),  # etcd answers pings more often than every 5 s with GOAWAY
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # a replaced member has a new address; 30 s by default
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_first_user = 0  # the id of the process that used gRPC first; its threads are missing in a forked child


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _unary(channel: Any, method: str) -> Any:
    path, response = METHODS[method]
    return channel.unary_unary(path, request_serializer=_serialize, response_deserializer=response.FromString)


def _ssl_credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in (ca, key, cert)))


def _target(endpoint: str) -> str:
    return urlsplit(endpoint).netloc


def _error(error: grpc.RpcError, endpoint: str) -> EtcdError:
    call: Any = error
    return failures.to_error(call.code().name, call.details() or "", endpoint)


def _sound(answer: Any, endpoint: str) -> Any:
    """The answer, which gRPC gives as None if it is missing or cannot be read; raises ``EtcdError`` then."""
    if answer is None:
        raise failures.to_error("INTERNAL", "its answer cannot be read", endpoint)
    return answer


def _check_fork() -> None:
    """Raise ``UsedElsewhere`` in a forked child: gRPC's threads are missing there, and calls would hang for ever."""
    global _first_user
    _first_user = _first_user or os.getpid()
    if _first_user != os.getpid():
        raise UsedElsewhere(
            f"process {_first_user} used etcd before it forked this one, and gRPC does not survive that; start child "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork before the first session is opened"
        )


class GrpcTransport(BaseTransport):
    """A ``Transport`` over grpcio's asyncio API. It belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings, choose: Callable[[int], int]) -> None:
        _check_fork()
        super().__init__(settings, choose)
        self._tls = Tls(settings, _ssl_credentials)
        self._connections = Connections(lambda endpoint: _Channel(endpoint, self._tls.credentials), _Channel.close)
        self._timeouts = CallTimeouts()

    async def watch(self) -> _GrpcWatchStream:
        """Open a watch stream."""
        endpoint = await self._current_endpoint()
        return _GrpcWatchStream(self._connections, self._connections.to(endpoint), self._token)

    def lease_client(self) -> GrpcLeaseClient:
        """A client for the keepalive thread, with channels of its own."""
        return GrpcLeaseClient(self._settings, self._endpoints, self._token)

    async def _close_connections(self) -> None:
        await self._connections.close()

    async def _ping(self, endpoint: str, timeout: float) -> None:
        connection = self._connections.to(endpoint)
        try:
            await self._send(endpoint, "ping", Empty(), timeout)
        except EtcdError:
            # For a name that DNS denies, a channel asks less and less often, in the end every two minutes.
            if connection.client.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                self._connections.replace(connection)
            raise

    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        token = self._token.metadata() if method != "authenticate" else ()
        connection = self._connections.to(endpoint)
        self._connections.enter(connection)
        try:
            call = connection.client.stub(method)(request, metadata=token or None)
            return _sound(await self._timeouts.answer(call, timeout), endpoint)
        except grpc.RpcError as error:
            raise _error(error, endpoint) from None
        except CallCancelled as error:
            raise failures.to_error("CANCELLED", str(error), endpoint) from None
        except TimeoutError as error:
            raise failures.to_error("DEADLINE_EXCEEDED", str(error), endpoint) from None
        finally:
            self._connections.leave(connection)

    def _reload_tls(self) -> bool:
        renewed = self._tls.refresh()
        if renewed:
            self._connections.renew()
        return renewed


class _Channel:
    """A channel to one endpoint, with a stub per method."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials:
            self.channel = grpc.aio.secure_channel(_target(endpoint), credentials, options=_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(_target(endpoint), options=_OPTIONS)
        self._stubs: dict[str, Callable[..., Call[Any]]] = {}

    def stub(self, method: str) -> Callable[..., Call[Any]]:
        """The stub of ``method``, made at its first use."""
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = _unary(self.channel, method)
        return stub

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()


class _GrpcWatchStream:
    """A watch stream. It keeps the token that it was opened with, and ends when that token is stale."""

    def __init__(self, connections: Connections[_Channel], connection: Connection[_Channel], token: Token) -> None:
        self._connections = connections
        self._connection = connection
        opener: Any = connection.client.channel.stream_stream(
            WATCH,
            request_serializer=_serialize,
            response_deserializer=pb.WatchResponse.FromString,
        )
        self._call = opener(metadata=REQUIRE_LEADER + token.metadata())
        connections.enter(connection)
        self.endpoint = connection.endpoint
        self._token = token
        self._token_since = token.since
        self._writing = asyncio.Lock()
        self._closed = False

    async def create(self, request: WatchRequest) -> None:
        """Begin a watch."""
        await self._write(codec.watch_request(request))

    async def cancel(self, watch_id: int) -> None:
        """End a watch."""
        await self._write(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    async def _write(self, message: pb.WatchRequest) -> None:
        try:
            async with self._writing:
                await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise EtcdUnavailable(f"the watch stream to {self.endpoint} broke", retryable=True) from None
        except asyncio.CancelledError:
            self._raise_unless_cancelled()
            raise

    async def receive(self) -> WatchMessage:
        """The next message. Raises ``EtcdError`` when the stream has ended."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise _error(error, self.endpoint) from None
        except asyncio.CancelledError:
            self._raise_unless_cancelled()
            raise
        if response is grpc.aio.EOF:
            raise EtcdUnavailable(f"etcd at {self.endpoint} ended the watch stream", retryable=True)
        message = codec.watch_message(response)
        self._token.check_watch(self._token_since, message)
        return message

    def close(self) -> None:
        """End the stream and its watches."""
        if not self._closed:
            self._closed = True
            self._call.cancel()
            self._connections.leave(self._connection)

    def _raise_unless_cancelled(self) -> None:
        """Raise ``EtcdUnavailable`` if the stream was cancelled, and not the current task.

        gRPC raises the same error for both.
        """
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            why = "left" if self._closed else "cancelled"
            raise EtcdUnavailable(f"the watch stream to {self.endpoint} was {why}", retryable=True) from None


class GrpcLeaseClient(BaseLeaseClient):
    """Blocking calls over channels of their own, so that a blocked event loop cannot delay them.

    A keepalive is one message on a stream of its own, sent as a unary call, so nothing delays it.
    """

    def __init__(self, settings: EtcdSettings, endpoints: Endpoints, token: Token) -> None:
        super().__init__(endpoints, token)
        self._tls = Tls(settings, _ssl_credentials)
        self._channels: dict[str, grpc.Channel] = {}
        self._pings: dict[str, Any] = {}  # a call ends when it is forgotten

    def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        token = self._token.metadata() if method != "authenticate" else ()
        try:
            call = _unary(self._channel(endpoint), method)
            return _sound(call(request, timeout=timeout, metadata=token or None), endpoint)
        except grpc.RpcError as error:
            raise _error(error, endpoint) from None

    def _ping(self, endpoints: Sequence[str], timeout: float) -> None:
        for endpoint in endpoints:
            last = self._pings.get(endpoint)
            if last is None or last.done():
                if last and last.code() is grpc.StatusCode.UNAVAILABLE:
                    self._tls.refresh()  # its certificate may have been replaced
                    self._channels.pop(endpoint).close()  # a new channel asks DNS at once
                self._pings[endpoint] = _unary(self._channel(endpoint), "ping").future(Empty(), timeout=timeout)

    def _reload_tls(self) -> None:
        if self._tls.refresh():
            self.close()

    def _channel(self, endpoint: str) -> grpc.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._tls.credentials:
                channel = grpc.secure_channel(_target(endpoint), self._tls.credentials, options=_OPTIONS)
            else:
                channel = grpc.insecure_channel(_target(endpoint), options=_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._pings.clear()
