"""``python-etcd3``'s lock: a compare-and-set, then a watch of the key by all who wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import etcd3


@contextmanager
def locks(endpoint: str, names: Sequence[str]) -> Iterator[list[Any]]:
    address = urlsplit(endpoint)
    with etcd3.client(host=address.hostname, port=address.port) as client:
        yield [client.lock(name, ttl=60) for name in names]
