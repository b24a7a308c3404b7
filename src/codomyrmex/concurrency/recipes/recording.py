"""Records every step of locks and path locks in a file, for as long as it runs, and goes on where it stopped.

It needs to read the namespace and writes nothing to etcd. While etcd cannot be reached, it waits. Then etcd's history
tells what happened meanwhile. If etcd has compacted some of that, the record goes on with the entries at the
compaction's revision, and all up to it is marked as a gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdUnavailable, text_of
from codomyrmex.concurrency.etcd.scan import pages
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.failures import COMPACTED
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, Transport, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Refused, WatchHub, receive
from codomyrmex.concurrency.keys import LOCK, PATH, Layout, forms, prefix_end, session_of, starting_with
from codomyrmex.concurrency.recipes.record_file import RecordFile, Written
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.waitqueue.record_lines import Line, RecordLines, begin_line, gap_line
from codomyrmex.concurrency.waitqueue.view import is_entry, skip

_RETRY = 1.0  # seconds

T = TypeVar("T")


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
    recorder = _Recorder(transport, settings, file, prefix)
    try:
        await transport.connect(recorder.request.key)
        await recorder.begin()
        await recorder.follow(told)
    finally:
        await transport.close()


class _Recorder:
    def __init__(self, transport: Transport, settings: EtcdSettings, file: RecordFile, prefix: str) -> None:
        self._transport = transport
        self._patience = settings.request_timeout
        self._layout = layout = Layout(settings.namespace)
        self._file = file
        self._prefix = prefix
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
            await self._pass_gap(written.revision)
            return
        lines = self._found(found)
        if written.steps:
            self._written = written.lines
        elif lines[written.lines :]:
            self._file.append(lines[written.lines :])

    async def follow(self, told: Callable[[int], object]) -> None:
        """Write the changes as they come, after those since ``begin``. After a gap it follows anew."""
        following = False
        while True:
            inbox: asyncio.Queue[Notice] = asyncio.Queue()
            hub = WatchHub(self._transport, partial(_broken, inbox))
            after = self.lines.revision
            try:
                hub.subscribe(self.request._replace(start=after + 1), inbox.put_nowait)
                while await self._take(await _waiting(inbox)):
                    if not following:
                        following = True
                        told(after)
            finally:
                await hub.close()
            self._written = 0
            await _patiently(lambda: self._pass_gap(self.lines.revision))

    async def _take(self, notices: Sequence[Notice]) -> bool:
        """Write what the notices tell. False if etcd has compacted what comes next."""
        lines: list[Line] = []
        for notice in notices:
            if isinstance(notice, Changed):
                lines += self._steps(notice)
                continue
            self._write(lines)  # now, for the next call may wait for etcd
            lines = []
            if isinstance(notice, Refused):
                raise notice.error
            if notice.gap:
                return False
            self._late_until = await _patiently(self._now)  # a watch begins, or goes on after a break
        self._write(lines)
        return True

    def _write(self, lines: Sequence[Line]) -> None:
        if lines:
            self._file.append(lines)

    def _steps(self, changed: Changed) -> list[Line]:
        lines = list(self.lines.changed(changed.events, datetime.now(UTC), self._late_until))
        done, self._written = self._written, max(0, self._written - len(lines))
        return lines[done:]

    async def _pass_gap(self, before: int) -> None:
        """Go on with the entries at the last compaction. The record goes up to the revision ``before``."""
        found = await self._read_compacted()
        # If etcd has compacted up to the last revision of the record, some lines of that one may be missing.
        first = min(before + 1, found.revision)
        self._file.append([gap_line(first, found.revision, datetime.now(UTC)), *self._found(found)])

    async def _read_compacted(self) -> _Reading:
        while True:
            try:
                return await self._read(await self._compacted())
            except EtcdError as error:
                if COMPACTED not in str(error):  # else there has been another compaction since
                    raise

    async def _compacted(self) -> int:
        """The revision of the last compaction. etcd tells it when it ends a watch that starts before it."""
        stream = await self._transport.watch()
        try:
            await stream.create(self.request._replace(start=1))
            async with asyncio.timeout(self._patience):
                while not (revision := (await receive(stream)).compact_revision):
                    pass
        except TimeoutError:
            raise EtcdUnavailable("etcd does not tell its last compaction", retryable=True) from None
        finally:
            stream.close()
        return revision

    async def _now(self) -> int:
        return (await self._transport.get(Get(self.request.key, limit=1))).revision

    def _found(self, found: _Reading) -> list[Line]:
        return self.lines.read(found.entries, found.revision, datetime.now(UTC), found.ended)

    async def _read(self, revision: int) -> _Reading:
        entries: list[KV] = []
        for kind in (LOCK, PATH):
            for form in forms(self._prefix):
                under = starting_with(self._layout.under(kind), form)
                entries += [kv async for page in pages(self._transport, under, revision=revision) for kv in page.kvs]
        delayed = {one for kv in entries if is_entry(kv) and (one := session_of(kv.key)) and one != kv.lease}
        leases = [(one, await self._transport.get(Get(self._layout.lease(one), revision=revision))) for one in delayed]
        return _Reading(entries, revision, [one for one, answer in leases if not answer.kvs])


async def _waiting(inbox: asyncio.Queue[Notice]) -> list[Notice]:
    """All notices that are there, at least one."""
    notices = [await inbox.get()]
    while not inbox.empty():
        notices.append(inbox.get_nowait())
    return notices


def _broken(inbox: asyncio.Queue[Notice], what: str, error: BaseException) -> None:
    inbox.put_nowait(Refused(EtcdError(f"{what} has failed: {text_of(error)}")))


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call to etcd, which is made again until etcd can be reached."""
    while True:
        try:
            return await call()
        except EtcdError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(_RETRY)
