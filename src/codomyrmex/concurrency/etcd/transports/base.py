"""What every transport does alike: the next endpoint after a failure, tokens, time limits, requests and their answers.

What a failure means is read from ``failures.py``. A call known not to have been applied is tried at the next
endpoint until its time is up; a transaction that may have been applied is never sent twice from here, that is
``commit.py``'s to settle.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import codec, failures
from codomyrmex.concurrency.etcd.transports.auth import Token
from codomyrmex.concurrency.etcd.transports.protocol import (
    Compare,
    Delete,
    Get,
    GetResult,
    Lease,
    Member,
    Op,
    Target,
    TxnResult,
)
from codomyrmex.concurrency.etcd.transports.revision_guard import Watermark
from codomyrmex.concurrency.settings import EtcdSettings

_RETRY_PAUSE = 0.05
_SURELY_VALID = 0.5  # seconds; etcd counts a token's life in whole seconds


class Calls(ABC):
    """The calls of a ``Transport``, above one that can send a request to one endpoint."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._watermark = Watermark(settings.endpoints, settings.namespace)
        self._endpoints = settings.endpoints
        self._current = 0
        self._token = Token(settings)

    @abstractmethod
    async def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        """The answer of ``endpoint``, within ``timeout`` seconds; raises ``EtcdError``. A stale token would spoil even
        the request for a new one: ``authenticate`` goes without."""

    @abstractmethod
    def _renewed(self) -> bool:
        """After a failure: if the TLS files have been replaced, new calls go over new connections, and what is under
        way on the old ones ends there. Returns whether they were."""

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
        request = codec.txn_request(compares, then, otherwise)
        floor = self._watermark.revision
        result = codec.txn_result(await self._anywhere("txn", request, repeatable=False))
        self._watermark.seen(result.revision, floor)
        return result

    async def get(self, get: Get) -> GetResult:
        response: pb.RangeResponse = await self._anywhere("range", codec.range_request(get))
        return codec.get_result(response, response.header.revision)

    async def delete(self, delete: Delete) -> int:
        request = codec.delete_request(delete)
        response: pb.DeleteRangeResponse = await self._anywhere("delete", request, repeatable=False)
        return response.deleted

    async def grant(self, ttl: int) -> Lease:
        response = await self._anywhere("grant", pb.LeaseGrantRequest(TTL=ttl))
        return Lease(response.ID, response.TTL)

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

    async def _anywhere(self, method: str, request: Any, limit: float | None = None, repeatable: bool = True) -> Any:
        """Call the current endpoint, and after a failure that allows it the next ones, within the limit."""
        limit = limit or self._settings.request_timeout
        deadline = time.monotonic() + limit
        last: EtcdError | None = None
        for attempt in range(1_000_000):
            index = self._current
            left = deadline - time.monotonic()
            if left <= (_RETRY_PAUSE if attempt else 0):  # too little for an answer, and for a truer word than "late"
                break
            # A hanging endpoint must leave time for the others.
            share = left if len(self._endpoints) == 1 else max(left / 2, min(left, 0.2))
            try:
                return await self._call(self._endpoints[index], method, request, share)
            except EtcdError as error:
                last = error
                if self._renewed() and error.applied == "no":
                    continue
                again = error.retryable and (repeatable or error.applied == "no")
                if not isinstance(error, EtcdUnavailable):
                    raise
                self.suspect(self._endpoints[index])
                if not again:
                    raise
            if (attempt + 1) % len(self._endpoints) == 0:
                await asyncio.sleep(min(_RETRY_PAUSE, max(0.0, deadline - time.monotonic())))
        raise failures.unavailable(self._endpoints, limit, last)

    async def _call(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, timeout)
        try:
            return await self._once(endpoint, method, request, timeout)
        except EtcdError as error:
            if not (self._token.required and failures.token_expired(str(error))):
                raise
        await self._authenticate(endpoint, timeout)
        return await self._once(endpoint, method, request, timeout)

    async def _authenticate(self, endpoint: str, timeout: float) -> None:
        self._token.renew((await self._once(endpoint, "authenticate", self._token.request(), timeout)).token)

    async def _current_endpoint(self) -> str:
        """Where a stream is to begin, with a token."""
        endpoint = self._endpoints[self._current]
        if self._token.required and not self._token.value:
            await self._authenticate(endpoint, self._settings.request_timeout)
        return endpoint


class LeaseCalls(ABC):
    """Blocking calls, for the keepalive thread: each has its own time limit, and after a failure the next one goes to
    the next endpoint."""

    def __init__(self, settings: EtcdSettings, current: int, token: Token) -> None:
        self._endpoints = settings.endpoints
        self._current = current
        self._token = token

    @abstractmethod
    def _once(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        """The answer of ``endpoint``; raises ``EtcdError``."""

    @abstractmethod
    def _renew_files(self) -> None:
        """After a failure: if the TLS files have been replaced, so are the connections."""

    def renew(self, lease_id: int, timeout: float) -> int:
        response = self._call("renew", pb.LeaseKeepAliveRequest(ID=lease_id), timeout)
        ttl: int = response.TTL
        return ttl

    def revoke(self, lease_id: int, timeout: float) -> None:
        self._call("revoke", pb.LeaseRevokeRequest(ID=lease_id), timeout)

    def remove(self, key: bytes, create_revision: int, timeout: float) -> None:
        same = Compare(key, Target.CREATE_REVISION, create_revision)
        self._call("txn", codec.txn_request((same,), (Delete(key),), ()), timeout)

    @property
    def endpoint(self) -> str:
        return self._endpoints[self._current]

    def _call(self, method: str, request: Any, timeout: float) -> Any:
        endpoint = self.endpoint
        try:
            return self._authorized(endpoint, method, request, timeout)
        except EtcdError:
            self._current = (self._current + 1) % len(self._endpoints)
            self._renew_files()
            raise

    def _authorized(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        try:
            return self._once(endpoint, method, request, timeout)
        except EtcdError as error:
            if not (self._token.required and failures.token_expired(str(error))):
                raise
        self._token.renew(self._once(endpoint, "authenticate", self._token.request(), timeout).token)
        return self._once(endpoint, method, request, timeout)


def refused_as_stale(token: Token, since: float, reason: str) -> bool:
    """Whether a watch may have been refused for the token's age: etcd 3.5.1, for one, calls that "permission denied"
    too. Only of a token too young to have expired is this believed."""
    if not token.required:
        return False
    old = time.monotonic() - since > _SURELY_VALID
    return failures.token_expired(reason) or (old and "permission denied" in reason)
