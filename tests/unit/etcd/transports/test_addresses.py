"""Addresses of an endpoint: asked for again after a second, known while DNS is silent, each in a thread that ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from codomyrmex.concurrency.etcd.transports import addresses
from codomyrmex.concurrency.etcd.transports.addresses import Addresses, addresses_of


class Dns:
    """Answers ``getaddrinfo`` with ``answer``: an address or an error; while ``silent`` is set, it does not."""

    def __init__(self) -> None:
        self.answer: str | Exception = "10.0.0.1"
        self.asked = 0
        self.talks = threading.Event()
        self.talks.set()

    def __call__(self, host: str, port: int, type: int = 0, flags: int = 0) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not an address")
        self.asked += 1
        assert self.talks.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, type, 0, "", (self.answer, port))]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dns]:
    made = Dns()
    monkeypatch.setattr(addresses.socket, "getaddrinfo", made)
    monkeypatch.setattr(addresses, "PATIENCE", 0.02)
    yield made
    made.talks.set()


def _address(names: Addresses) -> Any:
    asked = names.ask()
    wait((asked,), timeout=names.patience or 2)
    (address,) = names.settle(asked)
    return address.where[0]


def test_an_answer_is_used_again_for_a_second_and_no_longer(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Addresses("m0", 2379)
    assert [_address(names), _address(names)] == ["10.0.0.1"] * 2 and dns.asked == 1
    assert addresses._MEMORY == 1.0
    monkeypatch.setattr(addresses, "_MEMORY", 0.0)
    dns.answer = "10.0.0.2"
    assert _address(names) == "10.0.0.2"


def test_the_last_answer_is_used_while_dns_is_silent_or_fails(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Addresses("m0", 2379)
    _address(names)
    monkeypatch.setattr(addresses, "_MEMORY", 0.0)
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    assert _address(names) == "10.0.0.1"
    dns.talks.clear()
    assert names.patience == addresses.PATIENCE
    assert [_address(names), _address(names)] == ["10.0.0.1"] * 2
    assert dns.asked == 3, "a lookup under way is not doubled"


async def test_an_event_loop_waits_for_dns_no_longer_than_an_earlier_answer_allows(
    dns: Dns, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Addresses("m0", 2379)
    dns.talks.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(names.look_up(), 0.1)
    dns.talks.set()
    await names.look_up()
    monkeypatch.setattr(addresses, "_MEMORY", 0.0)
    dns.talks.clear()
    async with asyncio.timeout(2):
        told = await asyncio.gather(*(names.look_up() for _ in range(9)))
    assert {address.where[0] for (address,) in told} == {"10.0.0.1"} and dns.asked == 2


def test_a_name_that_dns_denies_has_no_address_any_more(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Addresses("m0", 2379)
    _address(names)
    monkeypatch.setattr(addresses, "_MEMORY", 0.0)
    dns.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(OSError, match="DNS resolution failed for m0: Name or service not known"):
        _address(names)
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    with pytest.raises(OSError, match="try again"):
        _address(names)


def test_a_first_answer_that_does_not_come_is_a_timeout(dns: Dns) -> None:
    names = Addresses("m0", 2379)
    assert names.patience is None, "there is nothing to fall back on"
    dns.talks.clear()
    asked = names.ask()
    with pytest.raises(TimeoutError, match="DNS gave no address for m0"):
        names.settle(asked)


def test_a_lookup_leaves_no_thread(dns: Dns) -> None:
    names = Addresses("m0", 2379)
    _address(names)
    for lookup in _lookups():
        lookup.join(5)  # it has answered, and may be about to end
    assert not _lookups()


def _lookups() -> list[threading.Thread]:
    """The threads that look up a name."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("dns-")]


def test_an_address_needs_no_thread() -> None:
    for endpoint, where in (("http://127.0.0.1:1", ("127.0.0.1", 1)), ("https://[::1]:2", ("::1", 2, 0, 0))):
        names = addresses_of(endpoint)
        asked = names.ask()
        assert asked.done() and [address.where for address in names.settle(asked)] == [where]


def test_what_cannot_be_a_name_is_said_to_be_none() -> None:
    names = Addresses("a" * 70 + ".example", 2379)
    asked = names.ask()
    wait((asked,), timeout=5)
    with pytest.raises(OSError, match="is not a host name"):
        names.settle(asked)
