"""etcd over grpcio: one channel per endpoint, failover, TLS, user tokens, time limits.

What a failure means is read from ``status.py``. A call known not to have been applied is tried at the next
endpoint until its time is up; a transaction that may have been applied is never sent twice from here, that is
``commit.py``'s to settle.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

# gRPC's fork handlers crash a child whose parent was inside gRPC at that moment (seen in one fork of ten), and its
# asyncio API cannot be used after a fork anyway. Without them the child lives, for whatever else it does.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd import status, wire
from codomyrmex.concurrency.etcd.credentials import Metadata, Tls, Token
from codomyrmex.concurrency.etcd.overdue import Call, Overdue
from codomyrmex.concurrency.etcd.transport import (
    Compare,
    Delete,
    Get,
    GetResult,
    Lease,
    Member,
    Op,
    Target,
    TxnResult,
    WatchMessage,
    WatchRequest,
)
from codomyrmex.concurrency.etcd.watermark import Watermark
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
_RETRY_PAUSE = 0.05
_SURELY_VALID = 0.5  # seconds; etcd counts a token's life in whole seconds
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


def _target(endpoint: str) -> str:
    return urlsplit(endpoint).netloc


def _error(error: grpc.RpcError, endpoint: str) -> EtcdError:
    call: Any = error
    return status.to_error(call.code().name, call.details() or "", endpoint)


def _check_fork() -> None:
    """gRPC keeps threads, which a fork leaves behind: the child's calls would hang for ever. Say so instead."""
    global _first_user
    _first_user = _first_user or os.getpid()
    if _first_user != os.getpid():
        raise EtcdUnavailable(
            f"process {_first_user} used etcd before it forked this one, and gRPC does not survive that; start child "
            "processes with multiprocessing's 'spawn' or 'forkserver', or fork before the first session is opened"
        )


class GrpcTransport:
    """A ``Transport`` over grpcio's asyncio API. Belongs to the event loop that first uses it."""

    def __init__(self, settings: EtcdSettings) -> None:
        _check_fork()
        self._settings = settings
        self._watermark = Watermark(settings.endpoints, settings.namespace)
        self._endpoints = settings.endpoints
        self._current = 0
        self._tls = Tls(settings)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, str], Callable[..., Call[Any]]] = {}
        self._token = Token(settings)
        self._overdue = Overdue()

    @property
    def endpoints(self) -> Sequence[str]:
        return self._endpoints

    def suspect(self, endpoint: str) -> None:
        if self._endpoints[self._current] == endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    async def connect(self, key: bytes) -> None:
        """Find an endpoint that serves, within ``dial_timeout``, by reading ``key``."""
        await self._anywhere("range", pb.RangeRequest(key=key), self._settings.dial_timeout)

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        request = wire.txn_request(compares, then, otherwise)
        floor = self._watermark.revision
        result = wire.txn_result(await self._anywhere("txn", request, repeatable=False))
        self._watermark.seen(result.revision, floor)
        return result

    async def get(self, get: Get) -> GetResult:
        response: pb.RangeResponse = await self._anywhere("range", wire.range_request(get))
        return wire.get_result(response, response.header.revision)

    async def delete(self, delete: Delete) -> int:
        request = wire.delete_request(delete)
        response: pb.DeleteRangeResponse = await self._anywhere("delete", request, repeatable=False)
        return response.deleted

    async def grant(self, ttl: int) -> Lease:
        response = await self._anywhere("grant", pb.LeaseGrantRequest(TTL=ttl))
        return Lease(response.ID, response.TTL)

    async def watch(self) -> _GrpcWatchStream:
        endpoint = self._endpoints[self._current]
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, self._settings.request_timeout)
        opener = self._channel(endpoint).stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=_serialize,
            response_deserializer=pb.WatchResponse.FromString,
        )
        return _GrpcWatchStream(opener(metadata=_REQUIRE_LEADER + self._token.metadata()), endpoint, self._token)

    def lease_client(self) -> GrpcLeaseClient:
        return GrpcLeaseClient(self._settings, self._current, self._token)

    async def members(self) -> list[str]:
        response: pb.MemberListResponse = await self._anywhere("members", pb.MemberListRequest())
        return [url for member in response.members for url in member.clientURLs]

    async def member(self, endpoint: str) -> Member:
        reply: pb.StatusResponse = await self._call(
            endpoint, "status", pb.StatusRequest(), self._settings.request_timeout
        )
        return Member(
            endpoint,
            reply.version,
            reply.header.member_id,
            reply.leader,
            reply.dbSize,
            reply.header.revision,
            reply.header.cluster_id,
            tuple(reply.errors),
        )

    async def alarms(self) -> list[str]:
        response: pb.AlarmResponse = await self._anywhere("alarms", pb.AlarmRequest())
        names = pb.AlarmMember.Type.Name
        return [f"{names(alarm.alarm)} on member {alarm.memberID:x}" for alarm in response.alarms]

    async def close(self) -> None:
        await self._close_channels()

    async def _close_channels(self) -> None:
        channels, self._channels = self._channels, {}
        self._stubs.clear()
        for channel in channels.values():
            await channel.close()

    async def _anywhere(self, method: str, request: Any, limit: float | None = None, repeatable: bool = True) -> Any:
        """Call the current endpoint, and after a failure that allows it the next ones, within the limit."""
        limit = limit or self._settings.request_timeout
        deadline = time.monotonic() + limit
        last: EtcdError | None = None
        for attempt in range(1_000_000):
            index = self._current
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # A hanging endpoint must leave time for the others.
            share = left if len(self._endpoints) == 1 else max(left / 2, min(left, 0.2))
            try:
                return await self._call(self._endpoints[index], method, request, share)
            except EtcdError as error:
                last = error
                if await self._channels_renewed() and error.applied == "no":
                    continue
                again = error.retryable and (repeatable or error.applied == "no")
                if not isinstance(error, EtcdUnavailable):
                    raise
                self.suspect(self._endpoints[index])
                if not again:
                    raise
            if (attempt + 1) % len(self._endpoints) == 0:
                await asyncio.sleep(min(_RETRY_PAUSE, max(0.0, deadline - time.monotonic())))
        raise status.unavailable(self._endpoints, limit, last)

    async def _call(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, timeout)
        try:
            return await self._once(endpoint, method, request, timeout)
        except EtcdError as error:
            if not (self._token.required and status.token_expired(str(error))):
                raise
        await self._authenticate(endpoint, timeout)
        return await self._once(endpoint, method, request, timeout)

    async def _authenticate(self, endpoint: str, timeout: float) -> None:
        self._token.renew((await self._once(endpoint, "authenticate", self._token.request(), timeout)).token)

    async def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        # A stale token would spoil even the request for a new one.
        token = self._token.metadata() if method != "authenticate" else ()
        try:
            call = self._stub(endpoint, method)(request, metadata=token or None)
            return await self._overdue.answer(call, timeout)
        except grpc.RpcError as error:
            raise _error(error, endpoint) from None
        except TimeoutError as error:
            raise status.to_error("DEADLINE_EXCEEDED", str(error), endpoint) from None

    async def _channels_renewed(self) -> bool:
        """After a failure: if the TLS files have been replaced, so are the channels."""
        renewed = self._tls.refresh()
        if renewed:
            await self._close_channels()
        return renewed

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._tls.credentials:
                channel = grpc.aio.secure_channel(_target(endpoint), self._tls.credentials, options=_OPTIONS)
            else:
                channel = grpc.aio.insecure_channel(_target(endpoint), options=_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    def _stub(self, endpoint: str, method: str) -> Callable[..., Call[Any]]:
        stub = self._stubs.get((endpoint, method))
        if stub is None:
            stub = self._stubs[endpoint, method] = _unary(self._channel(endpoint), method)
        return stub


class _GrpcWatchStream:
    """A watch stream; the token it was opened with is its own, so a stale one ends it."""

    def __init__(self, call: Any, endpoint: str, token: Token) -> None:
        self._call = call
        self.endpoint = endpoint
        self._token = token
        self._token_since = token.since
        self._writing = asyncio.Lock()
        self._closed = False

    async def create(self, request: WatchRequest) -> None:
        await self._write(wire.watch_request(request))

    async def cancel(self, watch_id: int) -> None:
        await self._write(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    async def _write(self, message: pb.WatchRequest) -> None:
        try:
            async with self._writing:
                await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise EtcdUnavailable(f"the watch stream to {self.endpoint} broke", retryable=True) from None

    async def receive(self) -> WatchMessage:
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise _error(error, self.endpoint) from None
        except asyncio.CancelledError:
            if self._closed and not _being_cancelled():
                raise EtcdUnavailable("the watch stream was left", retryable=True) from None
            raise
        if response is grpc.aio.EOF:
            raise EtcdUnavailable(f"etcd at {self.endpoint} ended the watch stream", retryable=True)
        message = wire.watch_message(response)
        if message.created and message.canceled and self._is_stale(message.reason):
            self._token.value = ""
            raise EtcdUnavailable("the watch stream's auth token expired", retryable=True)
        return message

    def _is_stale(self, reason: str) -> bool:
        """Whether a watch may have been refused for the token's age: etcd 3.5.1, for one, calls that
        "permission denied" too. Only of a token too young to have expired is this believed."""
        if not self._token.required:
            return False
        old = time.monotonic() - self._token_since > _SURELY_VALID
        return status.token_expired(reason) or (old and "permission denied" in reason)

    def close(self) -> None:
        self._closed = True
        self._call.cancel()


def _being_cancelled() -> bool:
    """Whether the current task is being cancelled, and not just the call it reads from: grpcio says both alike."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class GrpcLeaseClient:
    """Blocking calls over channels of their own, so that a blocked event loop cannot delay them.

    A keepalive is one message on a stream of its own, made as a unary call: nothing else can stand in its way, it
    has its own time limit, and after a failure the next one goes to the next endpoint.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        current: int,
        token: Token,
    ) -> None:
        self._endpoints = settings.endpoints
        self._current = current
        self._tls = Tls(settings)
        self._token = token
        self._channels: dict[str, grpc.Channel] = {}

    def renew(self, lease_id: int, timeout: float) -> int:
        response = self._call("renew", pb.LeaseKeepAliveRequest(ID=lease_id), timeout)
        ttl: int = response.TTL
        return ttl

    def revoke(self, lease_id: int, timeout: float) -> None:
        self._call("revoke", pb.LeaseRevokeRequest(ID=lease_id), timeout)

    def remove(self, key: bytes, create_revision: int, timeout: float) -> None:
        same = Compare(key, Target.CREATE_REVISION, create_revision)
        self._call("txn", wire.txn_request((same,), (Delete(key),), ()), timeout)

    @property
    def endpoint(self) -> str:
        return self._endpoints[self._current]

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        endpoint = self.endpoint
        channel = self._channel(endpoint)
        try:
            return self._authorized(channel, method, request, timeout)
        except grpc.RpcError as error:
            self._current = (self._current + 1) % len(self._endpoints)
            if self._tls.refresh():
                self.close()
            raise _error(error, endpoint) from None

    def _authorized(self, channel: grpc.Channel, method: str, request: Any, timeout: float) -> Any:
        try:
            return _unary(channel, method)(request, timeout=timeout, metadata=self._token.metadata())
        except grpc.RpcError as error:
            call: Any = error
            if not (self._token.required and status.token_expired(call.details() or "")):
                raise
        self._token.renew(_unary(channel, "authenticate")(self._token.request(), timeout=timeout).token)
        return _unary(channel, method)(request, timeout=timeout, metadata=self._token.metadata())

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
