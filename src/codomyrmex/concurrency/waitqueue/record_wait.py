"""A holder records in etcd for how long it had waited, so that onlookers know since when it holds.

No other process can know it: etcd tells when an entry joined, and only watchers learn when its predecessor left. The
record costs one write, and is written only for holds that last half a second. It is for people to read. So it goes
beside group commit, one at a time in a session, and a refusal is final. A late write does no harm, for it compares the
entry's create revision, and its value: a report of progress has recorded the wait too, and stays.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Put, Target
from codomyrmex.concurrency.waitqueue.local import LocalQueues

LASTING = 0.5  # seconds of a hold after which its wait is recorded
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Holder(Protocol):
    """An entry that holds, as far as the record of its wait needs it."""

    key: bytes
    value: bytes
    token: int
    lease: int
    local: LocalQueues

    def holds(self) -> tuple[str, float] | None: ...


def with_wait(value: bytes, waited: float) -> bytes:
    """An entry's value, a JSON object, with the seconds that it waited."""
    return value[:-1] + b',"waited":%.3f}' % waited


async def record_wait(holder: Holder, waited: float) -> None:
    """Write the record; tries again while ``holder`` holds and etcd may yet take it. ``waited`` is in seconds."""
    same = Compare(holder.key, Target.CREATE_REVISION, holder.token)
    unchanged = Compare(holder.key, Target.VALUE, holder.value)
    put = Put(holder.key, with_wait(holder.value, waited), holder.lease)
    pause = _PAUSE
    while True:
        async with holder.local.recording:
            if not holder.holds():
                return
            try:
                await holder.local.session.transport.txn((same, unchanged), (put,))
                return
            except EtcdError as error:
                if not error.retryable:
                    return
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 2)
