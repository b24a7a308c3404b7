"""Bare etcd calls from Python: what no lock written in Python can beat one call at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import grpc.aio

from benchmarks.sample import Sample, repeat
from codomyrmex.concurrency.etcd import rpc_pb2 as pb

Call = Callable[[Any], Awaitable[Any]]


@asynccontextmanager
async def calls(endpoint: str) -> AsyncIterator[tuple[Call, Call]]:
    """``Put`` and ``DeleteRange`` on one channel."""
    async with grpc.aio.insecure_channel(urlsplit(endpoint).netloc) as channel:
        yield _unary(channel, "Put", pb.PutResponse), _unary(channel, "DeleteRange", pb.DeleteRangeResponse)


def _unary(channel: grpc.aio.Channel, method: str, response: Any) -> Call:
    call: Call = channel.unary_unary(
        f"/etcdserverpb.KV/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    return call


async def puts(endpoint: str, seconds: float, workers: int) -> Sample:
    """One put a cycle, each worker its own key."""
    async with calls(endpoint) as (put, _):
        requests = [pb.PutRequest(key=b"bench/floor/%d" % i, value=b"x" * 64) for i in range(workers)]
        return await repeat([partial(put, request) for request in requests], seconds)


async def two_calls(endpoint: str, seconds: float) -> Sample:
    """A put and its deletion a cycle: the two round trips of any lock."""
    async with calls(endpoint) as (put, delete):

        async def cycle() -> None:
            await put(pb.PutRequest(key=b"bench/floor/two", value=b"x" * 64))
            await delete(pb.DeleteRangeRequest(key=b"bench/floor/two"))

        return await repeat([cycle], seconds)
