"""A holder tells in etcd for how long it had waited, so that those who look on know since when it holds.

Nobody else can know it: etcd tells when an entry joined, and only those who watched learned when the one ahead left.
It costs one write, and only for what is held for half a second. It is for people to read. So it goes beside group
commit, one at a time in a session, and a refusal is final. A late one does no harm, for it compares the entry's create
revision.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Put, Target

if TYPE_CHECKING:
    from codomyrmex.concurrency.waitqueue.entry import Entry

LASTING = 0.5  # seconds of a hold after which it is told
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


def with_wait(value: bytes, waited: float) -> bytes:
    """An entry's value, a JSON object, with the seconds that it waited."""
    return value[:-1] + b',"waited":%.3f}' % waited


async def tell_wait(entry: Entry, waited: float) -> None:
    """Write it, for as long as the entry holds and etcd may yet take it."""
    same = Compare(entry.key, Target.CREATE_REVISION, entry.token)
    put = Put(entry.key, with_wait(entry.value, waited), entry.lease)
    pause = _PAUSE
    while True:
        async with entry.local.recording:
            if not entry.holds():
                return
            try:
                await entry.session.transport.txn((same,), (put,))
                return
            except EtcdError as error:
                if not error.retryable:
                    return
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 2)
