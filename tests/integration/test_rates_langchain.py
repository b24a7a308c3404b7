"""LangChain's chat models wait for the fleet's rate limit, where the extra ``langchain`` is installed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from codomyrmex import concurrency as twin
from codomyrmex.concurrency import EmbeddedEtcd, Rate
from codomyrmex.concurrency.sync import RateLimiter, Session
from tests.helpers import eventually

models = pytest.importorskip("langchain_core.language_models", reason="not run: langchain-core is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # LangChain's own

LIMITS = {"requests": Rate(100, per=60), "tokens": Rate(5_000, per=60)}


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


def adapter(limiter: RateLimiter, *amount: int, **cost: int) -> Any:
    from codomyrmex.concurrency.langchain import FleetRateLimiter

    return FleetRateLimiter(limiter, *amount, **cost)


def used(limiter: RateLimiter) -> dict[str, int]:
    return {use.dimension: use.used for use in limiter.info().uses}


def test_models_take_their_cost_from_the_fleets_limit(blocking: Session) -> None:
    limiter = RateLimiter("provider", limits=LIMITS, session=blocking)
    model = models.FakeListChatModel(responses=["yes"], rate_limiter=adapter(limiter, requests=1, tokens=800))
    assert model.invoke("x").content == "yes"
    assert asyncio.run(model.ainvoke("x")).content == "yes"
    assert "".join(str(chunk.content) for chunk in model.stream("x")) == "yes"
    assert used(limiter)["tokens"] >= 2_400


def test_a_call_waits_for_the_limit(blocking: Session) -> None:
    limits = adapter(RateLimiter("provider", Rate(4, per=1), session=blocking), 2)
    began = time.monotonic()
    assert all(limits.acquire() for _ in range(2)) and time.monotonic() - began < 0.9
    assert limits.acquire(blocking=False) is False and asyncio.run(limits.aacquire(blocking=False)) is False
    assert time.monotonic() - began < 0.9
    assert asyncio.run(limits.aacquire()) is True and time.monotonic() - began > 0.95


def test_what_is_free_is_taken_without_blocking(blocking: Session) -> None:
    limits = adapter(RateLimiter("provider", Rate(4, per=60), session=blocking), 2)
    assert [limits.acquire(blocking=False) for _ in range(3)] == [True, True, False]


async def test_a_wait_that_is_cancelled_takes_nothing(blocking: Session) -> None:
    limiter = RateLimiter("provider", Rate(1, per=60), session=blocking)

    async def waits() -> bool:
        return (await asyncio.to_thread(limiter.info)).waiting == 1

    async def gone() -> bool:
        return not await waits()

    await asyncio.to_thread(limiter.acquire)
    waiting = asyncio.create_task(adapter(limiter).aacquire())
    await eventually(waits)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(gone)


def test_a_wrong_limiter_or_cost_is_refused_at_once(blocking: Session) -> None:
    with pytest.raises(TypeError, match=r"concurrency\.sync\.RateLimiter"):
        adapter(twin.RateLimiter("provider", Rate(1, per=60)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="such as requests=1"):
        adapter(RateLimiter("provider", limits=LIMITS, session=blocking))
