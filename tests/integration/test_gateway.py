"""Cases of the gateway transport alone: a gateway that is off, an answer that is not etcd's.

Everything else is the suite itself: ``pytest --transport=gateway``.
"""

from __future__ import annotations

import asyncio

import pytest

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, EtcdError, EtcdUnavailable, Session


async def test_a_gateway_that_is_off_is_called_so() -> None:
    async with EmbeddedEtcd(args=["--enable-grpc-gateway=false"]) as own:
        with pytest.raises(EtcdError, match="enable-grpc-gateway=false; start it without, or use transport=native"):
            await Session(endpoints=own.endpoint, transport="gateway", dial_timeout=3).open()


async def test_what_is_no_etcd_is_called_so() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n<html>hi!</html>")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(EtcdUnavailable, match="not etcd's JSON; is a proxy in between"):
            await Session(endpoints=endpoint, transport="gateway", dial_timeout=1).open()


async def test_members_of_both_transports_take_turns(etcd: EmbeddedEtcd, namespace: str) -> None:
    settings = {"endpoints": etcd.endpoint, "namespace": namespace, "session_ttl": 3}
    async with Session(**settings, transport="gateway") as one, Session(**settings, transport="native") as two:
        tokens = []

        async def turns(session: Session) -> None:
            for _ in range(20):
                async with DistributedLock("x", session) as grant:
                    tokens.append(grant.token)

        await asyncio.wait_for(asyncio.gather(turns(one), turns(two)), 20)
        assert tokens == sorted(set(tokens)) and len(tokens) == 40
