"""Readings of everything under a prefix: its keys, page by page, and the names that follow it in its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, GetResult
from codomyrmex.concurrency.keys import escape, forms, name_in, prefix_end

PAGE = 1000  # keys


class CanGet(Protocol):
    """The part of ``Transport`` that a reading needs."""

    async def get(self, get: Get) -> GetResult: ...


async def pages(transport: CanGet, prefix: bytes, *, size: int = PAGE, revision: int = 0) -> AsyncIterator[GetResult]:
    """Every key under ``prefix`` in byte order, in pages of ``size``, all at one revision.

    ``revision`` 0 takes the current one, which the first page tells. The last page has fewer than ``size`` keys, so
    there is always one.
    """
    start, end = prefix, prefix_end(prefix)
    while True:
        page = await transport.get(Get(start, end, limit=size, revision=revision))
        revision = revision or page.revision
        yield page
        if len(page.kvs) < size:
            return
        start = page.kvs[-1].key + b"\0"


async def keys_under(transport: CanGet, prefix: bytes, *, size: int = PAGE) -> AsyncIterator[KV]:
    """Every key under ``prefix`` in byte order, all at one revision."""
    async for page in pages(transport, prefix, size=size):
        for kv in page.kvs:
            yield kv


async def names_under(transport: CanGet, prefix: bytes, beginning: str = "") -> AsyncIterator[str]:
    """The names that follow ``prefix`` as a segment of a key and start with ``beginning``, in whatever Unicode form.

    It costs one read of a single key for each name, however many keys the name has. Segments that encode no name are
    passed over.
    """
    for form in forms(beginning):
        start = prefix + escape(form).encode()
        end = prefix_end(start)
        while (found := await transport.get(Get(start, end, limit=1))).kvs:
            segment = found.kvs[0].key[len(prefix) :].partition(b"/")[0]
            if (name := name_in(segment)) is not None:
                yield name
            start = prefix_end(prefix + segment + b"/")
