"""The common part of all transports: the choice of an endpoint, retries, tokens, time limits, requests and answers.

``failures.py`` has the failure table. A call that was certainly not applied is tried at the next endpoint, within its
time limit. A transaction that may have been applied is never sent twice from here; ``commit.py`` settles it.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Token
from codomyrmex.concurrency.etcd.transports.endpoints import Endpoints
from codomyrmex.concurrency.etcd.transports.methods import METHODS
from codomyrmex.concurrency.etcd.transports.protocol import (
    ClusterMember,
    Compare,
    Delete,
    Get,
    GetResult,
    Lease,
    Op,
    Target,
    TxnResult,
)
from codomyrmex.concurrency.etcd.transports.revision_guard import RevisionGuard
from codomyrmex.concurrency.settings import EtcdSettings

_RETRY_PAUSE = 0.05
_PING_PAUSE = 10.0  # seconds between two pings of an endpoint that takes no calls
_PING_LIMIT = 5.0  # seconds for the answer to one


class BaseTransport(ABC):
    """A ``Transport`` whose subclass sends a request to one endpoint.

    It begins at the endpoint whose number ``choose`` returns, of so many as its argument says.
    """

    def __init__(self, settings: EtcdSettings, choose: Callable[[int], int]) -> None:
        self._settings = settings
        self._guard = RevisionGuard(settings.endpoints, settings.namespace)
        self._endpoints = Endpoints(settings.endpoints, choose(len(settings.endpoints)))
        self._token = Token(settings)
        self._pinging: asyncio.Task[None] | None = None

    @abstractmethod
    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        """Send a request and return the answer of ``endpoint``, within ``timeout`` seconds; raises ``EtcdError``.

        ``authenticate`` is sent without a token: with a stale one, etcd would refuse even the request for a new one.
        """

    @abstractmethod
    def _reload_tls(self) -> bool:
        """Read replaced TLS files after a failure; True if there were any.

        New calls then take new connections, and the calls under way end on the old ones.
        """

    @abstractmethod
    async def _ping(self, endpoint: str, timeout: float) -> None:
        """Make a call to ``endpoint`` that costs etcd next to nothing, so that a connection to it is open afterwards.

        Raises ``EtcdError``. The connection stays open, without calls, for longer than the pause between two pings.
        """

    @abstractmethod
    async def _close_connections(self) -> None:
        """Close all connections, and end the calls under way on them."""

    @property
    def endpoints(self) -> Sequence[str]:
        """The endpoints of the settings."""
        return self._settings.endpoints

    def suspect(self, endpoint: str) -> None:
        """Use the next endpoint from now on if ``endpoint`` is the current one."""
        self._endpoints.failed(endpoint)

    def connect_all(self) -> None:
        """Open connections to the other endpoints in the background, and keep them open until ``close``.

        A fail-over then needs neither DNS nor a TLS handshake, which may hang for the reason that the endpoint does.
        """
        if len(self._endpoints) > 1 and self._pinging is None:
            self._pinging = asyncio.create_task(self._ping_others())

    async def close(self) -> None:
        """Close all connections."""
        if self._pinging:
            self._pinging.cancel()
            await asyncio.gather(self._pinging, return_exceptions=True)
        await self._close_connections()

    async def connect(self, key: bytes) -> None:
        """Find an endpoint that serves, within ``dial_timeout``, by reading ``key``."""
        await self._call_any("range", pb.RangeRequest(key=key), self._settings.dial_timeout)

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        """Send a transaction and return its results. Raises ``EtcdError``."""
        request = codec.txn_request(compares, then, otherwise)
        floor = self._guard.revision
        answer = await self._call_any("txn", request, repeatable=False)
        try:
            result = codec.txn_result(answer)
        except DecodeError:
            raise failures.to_error("INTERNAL", "its answer cannot be read", self._endpoints.current) from None
        self._guard.check(result.revision, floor)
        return result

    async def get(self, get: Get) -> GetResult:
        """Read a key or a range."""
        response: pb.RangeResponse = await self._call_any("range", codec.range_request(get))
        return codec.get_result(response, response.header.revision)

    async def delete(self, delete: Delete) -> int:
        """Delete a key or a range, and return the number of keys removed."""
        request = codec.delete_request(delete)
        response: pb.DeleteRangeResponse = await self._call_any("delete", request, repeatable=False)
        return response.deleted

    async def grant(self, ttl: int) -> Lease:
        """Take a new lease of ``ttl`` seconds."""
        response = await self._call_any("grant", pb.LeaseGrantRequest(TTL=ttl))
        return Lease(response.ID, response.TTL)

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease once, and return its TTL in seconds; 0 if the lease is gone."""
        response: pb.LeaseKeepAliveResponse = await self._call_lease("renew", pb.LeaseKeepAliveRequest(ID=lease_id))
        return response.TTL

    async def time_to_live(self, lease_id: int) -> int:
        """The whole seconds that a lease has left, by etcd's count; 0 if the lease is gone, or in its last second."""
        request = pb.LeaseTimeToLiveRequest(ID=lease_id)
        response: pb.LeaseTimeToLiveResponse = await self._call_lease("time_to_live", request)
        # A leader that was elected this moment has not begun to count, and answers with three centuries.
        return max(0, min(response.TTL, response.grantedTTL))

    async def revoke(self, lease_id: int) -> None:
        """Revoke a lease, which deletes its keys. Does nothing if the lease is gone."""
        await self._call_lease("revoke", pb.LeaseRevokeRequest(ID=lease_id))

    async def members(self) -> list[str]:
        """The client URLs of all cluster members."""
        response: pb.MemberListResponse = await self._call_any("members", pb.MemberListRequest())
        return [url for member in response.members for url in member.clientURLs]

    async def member(self, endpoint: str) -> ClusterMember:
        """The state of the cluster member at ``endpoint``."""
        reply: pb.StatusResponse = await self._call(
            endpoint, "status", pb.StatusRequest(), self._settings.request_timeout
        )
        return ClusterMember(
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
        """The cluster's alarms, each as a text that names the member."""
        response: pb.AlarmResponse = await self._call_any("alarms", pb.AlarmRequest())
        names = pb.AlarmMember.Type.Name
        return [f"{names(alarm.alarm)} on member {alarm.memberID:x}" for alarm in response.alarms]

    async def _call_lease(self, method: str, request: Any) -> Any:
        """The answer of a call on one lease; an empty answer, whose TTL is 0, if the lease is gone."""
        try:
            return await self._call_any(method, request)
        except EtcdError as error:
            if failures.LEASE_NOT_FOUND in str(error):
                return METHODS[method][1]()
            raise

    async def _call_any(self, method: str, request: Any, limit: float | None = None, repeatable: bool = True) -> Any:
        """Call the current endpoint and, after a failure that allows it, the next ones, within ``limit`` seconds."""
        limit = limit or self._settings.request_timeout
        deadline = time.monotonic() + limit
        last: EtcdError | None = None
        for attempt in range(1_000_000):
            endpoint = self._endpoints.current
            left = deadline - time.monotonic()
            if left <= (_RETRY_PAUSE if attempt else 0):  # too little time for an answer; the last error says more
                break
            try:
                return await self._call(endpoint, method, request, self._share_of(left))
            except EtcdError as error:
                last = error
                if self._reload_tls() and error.applied == "no":
                    continue
                if isinstance(error, EtcdUnavailable):
                    self.suspect(endpoint)
                if not _may_repeat(error, repeatable):
                    raise
            if (attempt + 1) % len(self._endpoints) == 0:
                await asyncio.sleep(min(_RETRY_PAUSE, max(0.0, deadline - time.monotonic())))
        raise failures.unavailable(self._settings.endpoints, limit, last)

    def _share_of(self, left: float) -> float:
        """The seconds for one endpoint, of those left: an endpoint that hangs must leave time for the others."""
        return left if len(self._endpoints) == 1 else max(left / 2, min(left, 0.2))

    async def _call(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        """Call one endpoint, with a new token if the old one is missing or has expired."""
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, timeout)
        try:
            return await self._send(endpoint, method, request, timeout)
        except EtcdError as error:
            if not self._token.has_expired(error):
                raise
        await self._authenticate(endpoint, timeout)
        return await self._send(endpoint, method, request, timeout)

    async def _authenticate(self, endpoint: str, timeout: float) -> None:
        self._token.renew((await self._send(endpoint, "authenticate", self._token.request(), timeout)).token)

    async def _current_endpoint(self) -> str:
        """The endpoint for a new stream; a missing token is fetched from it."""
        endpoint = self._endpoints.current
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, self._settings.request_timeout)
        return endpoint

    async def _ping_others(self) -> None:
        while True:
            await asyncio.gather(*map(self._ping_quietly, self._endpoints.others))
            await asyncio.sleep(_PING_PAUSE)

    async def _ping_quietly(self, endpoint: str) -> None:
        try:
            await self._ping(endpoint, _PING_LIMIT)
        except EtcdError:  # the next ping tries again; a certificate that was replaced is one reason
            self._reload_tls()


def _may_repeat(error: EtcdError, repeatable: bool) -> bool:
    """True if a failed call may be sent to the next endpoint."""
    return isinstance(error, EtcdUnavailable) and error.retryable and (repeatable or error.applied == "no")


class BaseLeaseClient(ABC):
    """A ``LeaseClient``: blocking calls for the keepalive thread, each with its own time limit.

    After a failure, the next call goes to the next endpoint. The client begins at the transport's current endpoint, not
    at one of its own: watches go there too, and a hanging endpoint is noticed for them by a keepalive that fails.
    """

    def __init__(self, endpoints: Endpoints, token: Token) -> None:
        self._endpoints = endpoints.copy()
        self._token = token

    @abstractmethod
    def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        """Send a request and return the answer of ``endpoint``; raises ``EtcdError``."""

    @abstractmethod
    def _reload_tls(self) -> None:
        """Read replaced TLS files after a failure, and replace the connections."""

    @abstractmethod
    def _ping(self, endpoints: Sequence[str], timeout: float) -> None:
        """Send a call to each endpoint that opens a connection or keeps it open. Waits for nothing, raises nothing."""

    def connect_all(self) -> None:
        """Open the connections to all endpoints, or keep them open, without waiting for them."""
        if len(self._endpoints) > 1:
            self._ping((self._endpoints.current, *self._endpoints.others), _PING_LIMIT)

    def renew(self, lease_id: int, timeout: float) -> int:
        """Renew the lease, and return its TTL in seconds; 0 if the lease is gone."""
        response = self._call("renew", pb.LeaseKeepAliveRequest(ID=lease_id), timeout)
        ttl: int = response.TTL
        return ttl

    def revoke(self, lease_id: int, timeout: float) -> None:
        """Revoke the lease, which deletes its keys."""
        self._call("revoke", pb.LeaseRevokeRequest(ID=lease_id), timeout)

    def remove(self, key: bytes, create_revision: int, timeout: float) -> None:
        """Delete ``key`` if it still has this create revision."""
        same = Compare(key, Target.CREATE_REVISION, create_revision)
        self._call("txn", codec.txn_request((same,), (Delete(key),), ()), timeout)

    @property
    def endpoint(self) -> str:
        """The endpoint of the next call."""
        return self._endpoints.current

    @property
    def endpoint_count(self) -> int:
        """The number of endpoints."""
        return len(self._endpoints)

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        endpoint = self.endpoint
        try:
            return self._authorized(endpoint, method, request, timeout)
        except EtcdError:
            self._endpoints.failed(endpoint)
            self._reload_tls()
            raise

    def _authorized(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        try:
            return self._send(endpoint, method, request, timeout)
        except EtcdError as error:
            if not self._token.has_expired(error):
                raise
        self._token.renew(self._send(endpoint, "authenticate", self._token.request(), timeout).token)
        return self._send(endpoint, method, request, timeout)
