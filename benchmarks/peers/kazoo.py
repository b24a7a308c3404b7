"""``kazoo``'s lock on ZooKeeper: a queue of ephemeral nodes, each waiter watching the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from kazoo.client import KazooClient


@contextmanager
def locks(endpoint: str, names: Sequence[str]) -> Iterator[list[Any]]:
    client = KazooClient(hosts=urlsplit(endpoint).netloc)
    client.start()
    try:
        yield [client.Lock(f"/locks/{name}") for name in names]
    finally:
        client.stop()
        client.close()
