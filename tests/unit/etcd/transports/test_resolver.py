"""Names for the gateway's connections, by the rule of ``addresses.py`` and in the form that aiohttp wants."""

from __future__ import annotations

import socket

import pytest

from codomyrmex.concurrency.etcd.transports.addresses import addresses_of
from codomyrmex.concurrency.etcd.transports.resolver import Resolver


@pytest.mark.parametrize(
    ("endpoint", "host", "family"),
    [("http://127.0.0.1:2379", "127.0.0.1", socket.AF_INET), ("http://[::1]:2379", "::1", socket.AF_INET6)],
)
async def test_an_address_has_the_form_that_aiohttp_wants(
    endpoint: str, host: str, family: socket.AddressFamily
) -> None:
    (found,) = await Resolver(addresses_of(endpoint)).resolve("m0", 2379)
    assert (found["hostname"], found["host"], found["port"], found["family"]) == ("m0", host, 2379, family)


async def test_a_name_that_is_denied_is_told_with_its_reason() -> None:
    names = Resolver(addresses_of(f"http://{'a' * 70}.example:2379"))
    with pytest.raises(socket.gaierror) as caught:
        await names.resolve("a", 2379)
    assert "is not a host name" in caught.value.strerror
