"""Dead letters added and retried as fast as one process can."""

from __future__ import annotations

import asyncio
import time
import uuid

from benchmarks.floor import calls
from benchmarks.ours import NAMESPACE
from benchmarks.sample import Sample, repeat
from codomyrmex.concurrency import Attempt, DeadLetter, DeadLetterQueue, Session
from codomyrmex.concurrency.etcd import rpc_pb2 as pb

_ADDERS = 128
_RETRIES = 2_000
_HANDLERS = 256
_ERROR = "ConnectionError: 503: the provider is overloaded"


async def adds(endpoint: str, seconds: float) -> Sample:
    """Tasks of one process that add one entry after another."""
    async with Session(endpoints=endpoint, namespace=NAMESPACE) as session:
        queue = DeadLetterQueue(f"adds-{uuid.uuid4().hex}", session=session)

        async def add() -> None:
            await queue.add(operation="nothing", args={"item": 7}, error=_ERROR)

        return await repeat([add] * _ADDERS, seconds)


async def one_at_a_time(endpoint: str, seconds: float) -> Sample:
    """The two records of a retry, that it begins and how it ended, one put at a time."""
    value = b"x" * 500
    async with calls(endpoint) as (put, _):

        async def cycle() -> None:
            await put(pb.PutRequest(key=b"bench/floor/claim", value=value))
            await put(pb.PutRequest(key=b"bench/floor/claim", value=value))

        return await repeat([cycle], seconds)


async def retries(endpoint: str, seconds: float) -> Sample:
    """A fixed number of entries, each claimed, handled and resolved, by one worker."""
    async with Session(endpoints=endpoint, namespace=NAMESPACE) as session:
        queue = DeadLetterQueue(f"retries-{uuid.uuid4().hex}", session=session)
        adding = (queue.add(operation="nothing", args={"item": n}, error=_ERROR) for n in range(_RETRIES))
        await asyncio.gather(*adding)

        @queue.handler("nothing")
        async def nothing(entry: DeadLetter, attempt: Attempt) -> None:
            pass

        start = time.perf_counter()
        async with queue.worker(concurrency=_HANDLERS) as worker:
            await worker.settled()
        return Sample(cycles=_RETRIES, seconds=time.perf_counter() - start)
