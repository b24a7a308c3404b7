"""Names for the gateway's connections: asked for again after a second, and known while DNS is silent."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from codomyrmex.concurrency.etcd.transports import resolver
from codomyrmex.concurrency.etcd.transports.resolver import Resolver


class Dns:
    """Answers with ``answer``: an address, an error, or None for silence."""

    answer: str | Exception | None = "10.0.0.1"
    asked = 0

    async def resolve(self, host: str, port: int, family: int) -> list[dict[str, Any]]:
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return [{"host": self.answer}]

    async def close(self) -> None:
        pass


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    made = Dns()
    monkeypatch.setattr(resolver, "ThreadedResolver", lambda: made)
    monkeypatch.setattr(resolver, "_PATIENCE", 0.02)
    return made


async def _address(names: Resolver) -> str:
    async with asyncio.timeout(2):
        return (await names.resolve("m0", 2379))[0]["host"]


async def test_an_answer_is_used_again_for_a_second_and_no_longer(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Resolver()
    assert [await _address(names), await _address(names)] == ["10.0.0.1"] * 2 and dns.asked == 1
    assert resolver._MEMORY == 1.0
    monkeypatch.setattr(resolver, "_MEMORY", 0.0)
    dns.answer = "10.0.0.2"
    assert await _address(names) == "10.0.0.2"


async def test_the_last_answer_is_used_while_dns_is_silent_or_fails(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Resolver()
    await _address(names)
    monkeypatch.setattr(resolver, "_MEMORY", 0.0)
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert await _address(names) == "10.0.0.1"
    dns.answer = None
    asked = dns.asked
    assert await asyncio.gather(*(_address(names) for _ in range(9))) == ["10.0.0.1"] * 9
    assert dns.asked == asked + 1  # the others wait for the same question
    await names.close()


async def test_a_name_that_dns_denies_is_not_used_again(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Resolver()
    await _address(names)
    monkeypatch.setattr(resolver, "_MEMORY", 0.0)
    dns.answer = socket.gaierror(socket.EAI_NONAME, "no such name")
    with pytest.raises(socket.gaierror):
        await _address(names)


async def test_without_an_earlier_answer_the_first_is_waited_for(dns: Dns) -> None:
    dns.answer = None
    names = Resolver()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_address(names), 0.1)
    await names.close()
