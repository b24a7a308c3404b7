"""Names for the shell to complete, as etcd has them at that moment. Takes no lease, and says nothing if it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import click

from codomyrmex.concurrency.cli.options import settings

_LIMIT = 1.0  # seconds that somebody at a prompt is made to wait
_MOST = 100

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def names_of(segment: str) -> Complete:
    """Completes names of what lies under this segment of the keys: ``lock``, ``semaphore`` or ``dead``."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        context.ensure_object(dict)
        try:
            return asyncio.run(_names(context, segment, incomplete))
        except Exception:  # whatever is wrong, a prompt is not the place to say it
            return []

    return complete


async def _names(context: click.Context, segment: str, incomplete: str) -> list[str]:
    from codomyrmex.concurrency.etcd.transports.factory import transport_for
    from codomyrmex.concurrency.etcd.transports.protocol import Get
    from codomyrmex.concurrency.keys import (
        Layout,
        forms,
        name_in,
        past_segment,
        prefix_end,
        segment_after,
        starting_with,
    )

    chosen = settings(context)
    layout = Layout(chosen.namespace)
    under = layout.below(segment)
    found: list[str] = []
    transport = transport_for(chosen.model_copy(update={"dial_timeout": _LIMIT, "request_timeout": _LIMIT}))
    try:
        async with asyncio.timeout(_LIMIT):
            for form in forms(incomplete):
                start = starting_with(under, form)
                end = prefix_end(start)
                while len(found) < _MOST and (page := await transport.get(Get(start, end, limit=1))).kvs:
                    name = segment_after(under, page.kvs[0].key)
                    if (known := name_in(name)) is not None and known.isprintable():
                        found.append(known)
                    start = past_segment(under, name)
    finally:
        await transport.close()
    return found
