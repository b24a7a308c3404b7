"""etcd over grpcio: one channel per endpoint. What other transports do alike is in ``calls.py``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

# gRPC's fork handlers crash a child whose parent was inside gRPC at that moment (seen in one fork of ten), and its
# asyncio API cannot be used after a fork anyway. Without them the child lives, for whatever else it does.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable, UsedElsewhere
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Metadata, Tls, Token
from codomyrmex.concurrency.etcd.transports.base import Calls, LeaseCalls, refused_as_stale
from codomyrmex.concurrency.etcd.transports.call_timeouts import Call, CallCancelled, Overdue
from codomyrmex.concurrency.etcd.transports.connections import Link, Links
from codomyrmex.concurrency.etcd.transports.protocol import (
    WatchMessage,
    WatchRequest,
)
from codomyrmex.concurrency.settings import EtcdSettings

T = TypeVar("T")

_REQUIRE_LEADER: Metadata = (("hasleader", "true"),)
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 10_000),  # etcd answers pings more often than every 5 s with GOAWAY
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_first_user = 0  # the process that used gRPC first; its threads are missing in a forked child
_METHODS: dict[str, tuple[str, Any]] = {
    "range": ("KV/Range", pb.RangeResponse),
    "delete": ("KV/DeleteRange", pb.DeleteRangeResponse),
    "txn": ("KV/Txn", pb.TxnResponse),
    "grant": ("Lease/LeaseGrant", pb.LeaseGrantResponse),
    "revoke": ("Lease/LeaseRevoke", pb.LeaseRevokeResponse),
    "renew": ("Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse),
    "members": ("Cluster/MemberList", pb.MemberListResponse),
    "alarms": ("Maintenance/Alarm", pb.AlarmResponse),
    "status": ("Maintenance/Status", pb.StatusResponse),
    "authenticate": ("Auth/Authenticate", pb.AuthenticateResponse),
}


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _unary(channel: Any, method: str) -> Any:
    path, response = _METHODS[method]
    return channel.unary_unary(
        f"/etcdserverpb.{path}", request_serializer=_serialize, response_deserializer=response.FromString
    )


def _ssl_credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in (ca, key, cert)))


def _target(endpoint: str) -> str:
    return urlsplit(endpoint).netloc


def _error(error: grpc.RpcError, endpoint: str) -> EtcdError:
    call: Any = error
    return failures.to_error(call.code().name, call.details() or "", endpoint)


def _check_fork() -> None:
    """gRPC keeps threads, which a fork leaves behind: the child's calls would hang for ever. Say so instead."""
    global _first_user
    _first_user = _first_user or os.getpid()
    if _first_user != os.getpid():
        raise UsedElsewhere(
            f"process {_first_user} used etcd before it forked this one, and gRPC does not survive that; start child "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork before the first session is opened"
        )


class GrpcTransport(Calls):
    """A ``Transport`` over grpcio's asyncio API. Belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings) -> None:
        _check_fork()
        super().__init__(settings)
        self._tls = Tls(settings, _ssl_credentials)
        self._links = Links(lambda endpoint: _Channel(endpoint, self._tls.credentials), _Channel.close)
        self._overdue = Overdue()

    async def watch(self) -> _GrpcWatchStream:
        endpoint = await self._current_endpoint()
        return _GrpcWatchStream(self._links, self._links.to(endpoint), self._token)

    def lease_client(self) -> GrpcLeaseClient:
        return GrpcLeaseClient(self._settings, self._current, self._token)

    async def close(self) -> None:
        await self._links.close()

    async def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        token = self._token.metadata() if method != "authenticate" else ()
        link = self._links.to(endpoint)
        self._links.enter(link)
        try:
            call = link.connection.stub(method)(request, metadata=token or None)
            return await self._overdue.answer(call, timeout)
        except grpc.RpcError as error:
            raise _error(error, endpoint) from None
        except CallCancelled as error:
            raise failures.to_error("CANCELLED", str(error), endpoint) from None
        except TimeoutError as error:
            raise failures.to_error("DEADLINE_EXCEEDED", str(error), endpoint) from None
        finally:
            self._links.leave(link)

    def _renewed(self) -> bool:
        renewed = self._tls.refresh()
        if renewed:
            self._links.renew()
        return renewed


class _Channel:
    """A channel to one endpoint, and its stubs."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials:
            self.channel = grpc.aio.secure_channel(_target(endpoint), credentials, options=_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(_target(endpoint), options=_OPTIONS)
        self._stubs: dict[str, Callable[..., Call[Any]]] = {}

    def stub(self, method: str) -> Callable[..., Call[Any]]:
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = _unary(self.channel, method)
        return stub

    async def close(self) -> None:
        await self.channel.close()


class _GrpcWatchStream:
    """A watch stream; the token it was opened with is its own, so a stale one ends it."""

    def __init__(self, links: Links[_Channel], link: Link[_Channel], token: Token) -> None:
        self._links = links
        self._link = link
        opener: Any = link.connection.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=_serialize,
            response_deserializer=pb.WatchResponse.FromString,
        )
        self._call = opener(metadata=_REQUIRE_LEADER + token.metadata())
        links.enter(link)
        self.endpoint = link.endpoint
        self._token = token
        self._token_since = token.since
        self._writing = asyncio.Lock()
        self._closed = False

    async def create(self, request: WatchRequest) -> None:
        await self._write(codec.watch_request(request))

    async def cancel(self, watch_id: int) -> None:
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
        if message.created and message.canceled and refused_as_stale(self._token, self._token_since, message.reason):
            self._token.value = ""
            raise EtcdUnavailable("the watch stream's auth token expired", retryable=True)
        return message

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._call.cancel()
            self._links.leave(self._link)

    def _raise_unless_cancelled(self) -> None:
        """gRPC says alike that the stream was cancelled and that the current task is; only the first is an error."""
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            why = "left" if self._closed else "cancelled"
            raise EtcdUnavailable(f"the watch stream to {self.endpoint} was {why}", retryable=True) from None


class GrpcLeaseClient(LeaseCalls):
    """Blocking calls over channels of their own, so that a blocked event loop cannot delay them.

    A keepalive is one message on a stream of its own, made as a unary call: nothing else can stand in its way.
    """

    def __init__(self, settings: EtcdSettings, current: int, token: Token) -> None:
        super().__init__(settings, current, token)
        self._tls = Tls(settings, _ssl_credentials)
        self._channels: dict[str, grpc.Channel] = {}

    def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        token = self._token.metadata() if method != "authenticate" else ()
        try:
            return _unary(self._channel(endpoint), method)(request, timeout=timeout, metadata=token or None)
        except grpc.RpcError as error:
            raise _error(error, endpoint) from None

    def _renew_files(self) -> None:
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
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
