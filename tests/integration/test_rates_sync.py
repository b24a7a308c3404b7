"""The blocking twin of ``RateLimiter``, on a real etcd."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from codomyrmex import concurrency as twin
from codomyrmex.concurrency import EmbeddedEtcd, LimitMismatch, LockTimeout, NotHeld, Rate, RateLimitInUse, sync
from codomyrmex.concurrency.sync import AsyncWorkerPool, RateLimiter, Session
from tests.sync.test_blocking import run_python, run_threads

LIMITS = {"requests": Rate(100, per=60), "tokens": Rate(5_000, per=60)}


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


def test_used_takes_what_its_asyncio_twin_takes() -> None:
    assert inspect.signature(twin.Spend.used) == inspect.signature(sync.Spend.used)


def test_threads_share_a_limit(blocking: Session) -> None:
    limiter = RateLimiter("provider", Rate(20, per=1), session=blocking)
    times: list[float] = []

    def work(_: int) -> None:
        for _ in range(7):
            limiter.acquire()
            times.append(time.monotonic())

    run_threads(4, work)
    assert len(times) == 28
    assert max(sum(begin <= at < begin + 0.95 for at in times) for begin in times) <= 20


def test_what_is_reserved_and_not_used_comes_back(blocking: Session) -> None:
    limiter = RateLimiter("provider", limits=LIMITS, session=blocking)
    with limiter.reserve(requests=1, tokens=400, timeout=5) as spend:
        assert spend.cost == {"requests": 1, "tokens": 400} and spend.deadline() > 0
        spend.used(tokens=150)
        assert spend.overdraft == {}
        with pytest.raises(NotHeld):
            spend.used(tokens=150)
    with limiter.reserve(tokens=10) as spend:
        spend.used(tokens=4_010)
        assert spend.overdraft == {"tokens": 4_000}
    with pytest.raises(NotHeld):
        spend.used(tokens=1)
    with pytest.warns(RuntimeWarning, match="never entered"):
        limiter.reserve(tokens=1)


def test_a_throttled_limiter_waits_until_it_is_resumed(blocking: Session) -> None:
    limiter = RateLimiter("provider", Rate(100, per=1), session=blocking)
    limiter.acquire(3)
    assert limiter.resume() is False
    limiter.throttled(30)
    with pytest.raises(LockTimeout):
        limiter.acquire(timeout=0.2)
    assert limiter.info().paused_until is not None
    assert limiter.resume() is True
    limiter.acquire(timeout=5)


def test_limits_are_told_changed_and_deleted(blocking: Session) -> None:
    limiter = RateLimiter("provider", limits=LIMITS, session=blocking)
    assert limiter.limits == LIMITS and limiter.name == "provider"
    with pytest.raises(NotHeld):
        limiter.delete()
    limiter.acquire(requests=2)
    limiter.resize(tokens=Rate(8_000, per=60))
    assert {use.dimension: use.limit for use in limiter.info().uses} == {"requests": 100, "tokens": 8_000}
    with pytest.raises(RateLimitInUse):
        limiter.delete()
    with pytest.raises(LimitMismatch):
        RateLimiter("provider", limits={"requests": Rate(100, per=60)}, session=blocking).acquire(requests=1)
    with pytest.raises(ValueError, match="limit"):
        limiter.acquire(requests=101)
    with pytest.raises(TypeError, match=r"sync\.Session"):
        RateLimiter("provider", Rate(1, per=60), session=twin.Session())  # type: ignore[arg-type]


def test_a_pool_takes_a_limiter_of_the_twin(blocking: Session) -> None:
    limiter = RateLimiter("provider", limits=LIMITS, session=blocking)
    with AsyncWorkerPool(4, session=blocking, report=False) as pool:
        costs = pool.map(abs, range(1, 4), rate=limiter, cost=lambda item: {"requests": 1, "tokens": 100 * item})
        assert [result.unwrap() for result in costs] == [1, 2, 3]
        assert [result.unwrap() for result in pool.imap(abs, [5], rate=limiter, cost={"requests": 1})] == [5]
        with pytest.raises(TypeError, match="such as requests=1"):
            pool.map(abs, [1], rate=limiter)
    used = {use.dimension: use.used for use in limiter.info().uses}
    assert used["requests"] >= 4 and used["tokens"] >= 600


def test_an_interrupted_reserve_that_was_granted_gives_all_back(
    blocking: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = RateLimiter("provider", Rate(10, per=60), session=blocking)
    reserve, granted = twin.RateLimiter._reserve, threading.Event()

    async def too_late(self: twin.RateLimiter, cost: dict[str, int], timeout: float | None) -> twin.Spend:
        spend = await reserve(self, cost, timeout)
        granted.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return spend

    def interrupt() -> None:
        granted.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(twin.RateLimiter, "_reserve", too_late)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt), limiter.reserve(10):
        pass
    limiter.acquire(10, timeout=5)


def test_a_pool_refuses_what_is_no_limiter() -> None:
    with AsyncWorkerPool() as pool, pytest.raises(TypeError, match="rate must be a RateLimiter"):
        pool.map(abs, [1], rate=5)  # type: ignore[call-overload]


@pytest.mark.parametrize("call", ["acquire(1)", "reserve(1).__enter__()"])
def test_ctrl_c_ends_a_wait_and_leaves_nothing(
    call: str, etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    limiter = RateLimiter("provider", Rate(1, per=60), session=blocking)
    limiter.acquire()
    code = (
        "from codomyrmex.concurrency import Rate\nfrom codomyrmex.concurrency.sync import RateLimiter\n"
        f"RateLimiter('provider', Rate(1, per=60)).{call}"
    )
    with run_python(code, etcd, namespace) as process:
        deadline = time.monotonic() + 15
        while not limiter.info().waiting:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in err and process.returncode != 0
    assert not limiter.info().waiting
