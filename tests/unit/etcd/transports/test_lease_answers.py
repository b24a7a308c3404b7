"""The numbers that the transport makes of etcd's answers on a lease."""

from __future__ import annotations

from typing import Any

import pytest

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import failures
from codomyrmex.concurrency.settings import EtcdSettings
from tests.unit.etcd.transports.test_endpoints import FakeTransport

_NOT_FOUND = failures.to_error("NOT_FOUND", "etcdserver: requested lease not found", "http://a:1")
_DENIED = failures.to_error("PERMISSION_DENIED", "etcdserver: permission denied", "http://a:1")


class Answering(FakeTransport):
    """A transport whose etcd gives one answer to every call."""

    def __init__(self, answer: Any) -> None:
        super().__init__(EtcdSettings(endpoints=("http://a:1",)))
        self._answer = answer

    async def _send(self, endpoint: str, method: str, request: Any, timeout: float) -> Any:
        if isinstance(self._answer, EtcdError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("left", "granted", "seconds"),
    [
        (42, 60, 42),
        (0, 60, 0),  # its last second
        (-1, 0, 0),  # gone
        (-3, 60, 0),  # over, and about to be deleted
        (9_223_372_036, 60, 60),  # a new leader that does not count yet
    ],
)
async def test_time_to_live_is_between_nothing_and_the_granted_ttl(left: int, granted: int, seconds: int) -> None:
    answer = pb.LeaseTimeToLiveResponse(ID=1, TTL=left, grantedTTL=granted)
    assert await Answering(answer).time_to_live(1) == seconds


async def test_an_error_that_says_the_lease_is_gone_is_an_answer() -> None:
    transport = Answering(_NOT_FOUND)
    assert await transport.keep_alive(1) == 0
    assert await transport.time_to_live(1) == 0
    await transport.revoke(1)


async def test_any_other_refusal_is_raised() -> None:
    transport = Answering(_DENIED)
    for call in (transport.keep_alive, transport.time_to_live, transport.revoke):
        with pytest.raises(EtcdError, match="permission denied"):
            await call(1)
