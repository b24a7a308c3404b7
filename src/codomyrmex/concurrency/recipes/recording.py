"""Records every step of locks and path locks in a file, for as long as it runs, and goes on where it stopped.

It needs to read the namespace and writes nothing to etcd. While etcd cannot be reached, it waits. Then etcd's history
tells what happened meanwhile, unless it was compacted; that is marked as a gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, text_of
from codomyrmex.concurrency.etcd.scan import pages
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.failures import COMPACTED
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, Transport, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, Started, WatchHub
from codomyrmex.concurrency.keys import LOCK, PATH, Layout, forms, prefix_end, session_of, starting_with
from codomyrmex.concurrency.recipes.record_file import RecordFile, Written
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.waitqueue.record_lines import Line, RecordLines, begin_line, gap_line
from codomyrmex.concurrency.waitqueue.view import is_entry, skip

_RETRY = 1.0  # seconds


class _Reading(NamedTuple):
    """The entries at a revision, and the sessions of theirs that were over by then."""

    entries: Sequence[KV]
    revision: int
    ended: Sequence[int]


async def record(settings: EtcdSettings, file: RecordFile, prefix: str, told: Callable[[int], object]) -> None:
    """Append the steps of every lock and tree whose name starts with ``prefix`` to ``file``, until it is cancelled.

    ``told`` is called once it follows, with the revision behind which it begins or goes on. Raises ``EtcdUnavailable``
    if etcd cannot be reached at the start, and ``ConcurrencyError`` if the file cannot be written.
    """
    transport = transport_for(settings)
    recorder = _Recorder(transport, Layout(settings.namespace), file, prefix)
    try:
        await transport.connect(recorder.request.key)
        await recorder.begin()
        await recorder.follow(told)
    finally:
        await transport.close()


class _Recorder:
    def __init__(self, transport: Transport, layout: Layout, file: RecordFile, prefix: str) -> None:
        self._transport = transport
        self._layout = layout
        self._file = file
        self._prefix = prefix
        self._inbox: asyncio.Queue[Notice] = asyncio.Queue()
        self._late_until = 0
        self.lines = RecordLines(layout, prefix, skip)
        # From the records of forced releases to the paths, for these and a deletion come in one revision then.
        self.request = WatchRequest(layout.below("audit"), prefix_end(layout.under(PATH)), previous=True)
        self._written = 0  # lines of the next revision that the file has already

    async def begin(self) -> None:
        """Read the entries at the revision at which the file ends, or now, and write them if the file has not."""
        written, now = self._file.written, await self._now()
        if written is None:
            found = await self._read(now)
            begun = begin_line(found.revision, datetime.now(UTC), self._layout.namespace, self._prefix)
            self._file.append([begun, *self._found(found)])
        elif written.revision > now:
            raise ConcurrencyError(
                f"the record goes up to revision {written.revision}, but etcd is at {now}: it is a record of another "
                "etcd; choose another file"
            )
        else:
            await self._resume(written, now)

    async def _resume(self, written: Written, now: int) -> None:
        try:
            found = await self._read(written.revision - 1 if written.steps else written.revision)
        except EtcdError as error:
            if COMPACTED not in str(error):
                raise
            found = await self._read(now)
            self._file.append(self._after_gap(written.revision, found))
            return
        lines = self._found(found)
        if written.steps:
            self._written = written.lines
        elif lines[written.lines :]:
            self._file.append(lines[written.lines :])

    async def follow(self, told: Callable[[int], object]) -> None:
        """Write the changes as they come, after those since ``begin``."""
        hub = WatchHub(self._transport, self._broken)
        try:
            hub.subscribe(self.request._replace(start=self.lines.revision + 1), self._inbox.put_nowait)
            self._write(await self._started(await self._inbox.get()))
            told(self.lines.revision)
            while True:
                notices = [await self._inbox.get()]
                while not self._inbox.empty():
                    notices.append(self._inbox.get_nowait())
                await self._take(notices)
        finally:
            await hub.close()

    async def _take(self, notices: Sequence[Notice]) -> None:
        lines: list[Line] = []
        for notice in notices:
            if isinstance(notice, Changed):
                lines += self._steps(notice)
            else:
                self._write(lines)  # now, for the next call may wait for etcd
                lines = await self._started(notice)
        self._write(lines)

    def _write(self, lines: Sequence[Line]) -> None:
        if lines:
            self._file.append(lines)

    def _steps(self, changed: Changed) -> list[Line]:
        lines = list(self.lines.changed(changed.events, datetime.now(UTC), self._late_until))
        done, self._written = self._written, max(0, self._written - len(lines))
        return lines[done:]

    async def _started(self, notice: Notice) -> list[Line]:
        """A watch has begun, or goes on after a break: what it tells of the time before now is late."""
        if isinstance(notice, Refused):
            raise notice.error
        while True:
            try:
                self._late_until = await self._now()
                if not (isinstance(notice, Started) and notice.gap):
                    return []
                self._written = 0
                return self._after_gap(self.lines.revision, await self._read(self._late_until))
            except EtcdError as error:
                if not error.retryable and COMPACTED not in str(error):
                    raise
                await asyncio.sleep(_RETRY)

    async def _now(self) -> int:
        return (await self._transport.get(Get(self.request.key, limit=1))).revision

    def _found(self, found: _Reading) -> list[Line]:
        return self.lines.read(found.entries, found.revision, datetime.now(UTC), found.ended)

    def _after_gap(self, before: int, found: _Reading) -> list[Line]:
        return [gap_line(before + 1, found.revision, datetime.now(UTC)), *self._found(found)]

    async def _read(self, revision: int) -> _Reading:
        entries: list[KV] = []
        for kind in (LOCK, PATH):
            for form in forms(self._prefix):
                under = starting_with(self._layout.under(kind), form)
                entries += [kv async for page in pages(self._transport, under, revision=revision) for kv in page.kvs]
        delayed = {one for kv in entries if is_entry(kv) and (one := session_of(kv.key)) and one != kv.lease}
        leases = [(one, await self._transport.get(Get(self._layout.lease(one), revision=revision))) for one in delayed]
        return _Reading(entries, revision, [one for one, answer in leases if not answer.kvs])

    def _broken(self, what: str, error: BaseException) -> None:
        self._inbox.put_nowait(Refused(EtcdError(f"{what} has failed: {text_of(error)}")))
