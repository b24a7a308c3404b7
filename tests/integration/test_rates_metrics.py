"""Observers and metrics of rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry

from codomyrmex.concurrency import Rate, RateLimiter, Session, telemetry
from codomyrmex.concurrency.prometheus import MAX_LIMITERS, Metrics

LIMITS = {"requests": Rate(100, per=60), "tokens": Rate(5_000, per=60)}


class Told(telemetry.Observer):
    def __init__(self) -> None:
        self.what: list[tuple[object, ...]] = []
        self.waits: list[float] = []

    def rate_granted(self, name: str, cost: Mapping[str, int], waited: float) -> None:
        self.what.append(("granted", name, cost))
        self.waits.append(waited)

    def rate_used(self, name: str, given_back: Mapping[str, int], overdraft: Mapping[str, int]) -> None:
        self.what.append(("used", name, given_back, overdraft))

    def rate_paused(self, name: str, seconds: float) -> None:
        self.what.append(("paused", name, seconds))


@pytest.fixture
def told() -> Iterator[Told]:
    observer = Told()
    telemetry.observe(observer)
    yield observer
    telemetry.ignore(observer)


async def work(limiter: RateLimiter) -> None:
    """Two calls; a pause, in which a third one waits; its end."""
    async with limiter.reserve(requests=1, tokens=400) as spend:
        spend.used(tokens=150)
    async with limiter.reserve(tokens=10) as spend:
        spend.used(tokens=15)
    await limiter.throttled(30)
    await limiter.throttled(10)  # it is paused for longer already
    third = asyncio.create_task(limiter.acquire(requests=2))
    await asyncio.sleep(0.1)
    await limiter.resume()
    await third


async def test_an_observer_is_told_of_calls_and_pauses(session: Session, told: Told) -> None:
    await work(RateLimiter("provider", limits=LIMITS, session=session))
    assert told.what == [
        ("granted", "provider", {"requests": 1, "tokens": 400}),
        ("used", "provider", {"tokens": 250}, {}),
        ("granted", "provider", {"tokens": 10}),
        ("used", "provider", {}, {"tokens": 5}),
        ("paused", "provider", 30),
        ("granted", "provider", {"requests": 2}),
    ]
    assert told.waits[-1] >= 0.09


async def test_prometheus_counts_amounts_by_limiter_and_dimension(session: Session) -> None:
    registry = CollectorRegistry()
    async with Metrics(registry):
        await work(RateLimiter("provider", limits=LIMITS, session=session))

        def value(name: str, dimension: str | None = None) -> float | None:
            labels = {"limiter": "provider", **({"dimension": dimension} if dimension is not None else {})}
            return registry.get_sample_value(f"codomyrmex_rate_{name}", labels)

        assert (value("granted_total", "requests"), value("granted_total", "tokens")) == (3, 410)
        assert (value("given_back_total", "tokens"), value("overdraft_total", "tokens")) == (250, 5)
        assert (value("pauses_total"), value("wait_seconds_count")) == (1, 3)
        assert registry.get_sample_value("codomyrmex_grants_total", {"kind": "rate limit"}) is None


def test_many_limiters_are_summed_up() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for number in range(MAX_LIMITERS + 3):
        metrics.rate_granted(f"limiter-{number}", {"": 2}, 0.0)
    metrics.rate_paused("limiter-0", 1.0)
    metrics.close()
    assert metrics._rate_granted.labels("other", "")._value.get() == 6
    assert metrics._rate_pauses.labels("limiter-0")._value.get() == 1
