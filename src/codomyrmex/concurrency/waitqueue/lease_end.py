"""The end of a lease that serves no more: it is revoked in the background."""

from __future__ import annotations

import asyncio

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.session_core import SessionCore

_PAUSES = (0.2, 1.0, 3.0)  # seconds between the attempts


def revoke(session: SessionCore, lease: int) -> None:
    """Revoke a lease, with its keys, in a task of the session. If etcd does not answer, the lease ends by itself."""
    session.keep(asyncio.create_task(_revoked(session, lease)))


async def _revoked(session: SessionCore, lease: int) -> None:
    for pause in (*_PAUSES, None):
        try:
            await session.transport.revoke(lease)
        except EtcdError as error:
            if pause is None or not error.retryable:
                return
            await asyncio.sleep(pause)
        else:
            return
