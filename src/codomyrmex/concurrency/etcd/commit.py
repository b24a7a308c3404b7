"""Group commit, and the rule "never in doubt".

Requests that meet travel in one transaction, each answered by its own share of the results; the removals of
``removal.py`` that wait meanwhile go along. Every transaction with requests compares the version of the session's
leased key. When an answer is lost the transaction may have been applied, or may still be applied later; so nothing new
is sent, the session key is written first (its version moves on: a straggler can no longer commit), and then each
request in doubt is sent again in a form that is harmless to repeat and tells what happened. Callers therefore see each
request take effect exactly once or not at all.

A request whose caller is gone by the time its answer is here is taken back by its ``undo``; so is one whose caller was
told that its fate is unknown: it is not carried out afterwards.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdRegressed,
    EtcdUnavailable,
    SessionLost,
)
from codomyrmex.concurrency.etcd.batching import Batcher
from codomyrmex.concurrency.etcd.deletion import Removal, Remover, answer, deletions, notes
from codomyrmex.concurrency.etcd.supervision import Broken, supervise
from codomyrmex.concurrency.etcd.transports.protocol import (
    MAX_OPS,
    Compare,
    Get,
    GetResult,
    Op,
    OpResult,
    Put,
    Target,
    Transport,
    TxnResult,
)

MAX_BYTES = 1 << 20  # of values in one transaction; etcd takes requests of 1.5 MiB
DEPTH = 2
_PAUSE = 0.1


class Reply(NamedTuple):
    """One request's share of a transaction. Not succeeded: a compare failed, results are its ``otherwise``."""

    succeeded: bool
    revision: int
    results: Sequence[OpResult]


@dataclass(slots=True, eq=False)
class Request:
    """What one caller wants done in a transaction.

    ``groups``: requests that share a group are sent one after another, in order, never together. ``alone``: it may be
    refused, so it travels by itself. ``again``: compares added when it is sent a second time, which make repeating
    it harmless; None if it must never be repeated. ``otherwise``: what to read when refused. ``undo``: called when
    the request was applied but nobody waits for it any more. ``unsent``: called when it was cancelled before it was
    sent. ``size``: bytes of its values, where they are not small.
    """

    groups: Sequence[bytes]
    then: Sequence[Op]
    compares: Sequence[Compare] = ()
    otherwise: Sequence[Op] = ()
    again: Sequence[Compare] | None = None
    alone: bool = False
    undo: Callable[[], object] | None = None
    unsent: Callable[[], object] | None = None
    size: int = 0
    ahead: int = 0  # in how many of its groups others come first
    reply: asyncio.Future[Reply] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def answer(self, reply: Reply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)
        elif self.undo:
            self.undo()

    def fail(self, error: ConcurrencyError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # a caller that is gone leaves no warning behind


class Fence(NamedTuple):
    """The session's leased key, whose version guards every transaction."""

    key: bytes
    value: bytes
    lease: int


class Committer:
    """Sends requests in shared transactions; see the module's text. ``hopeless`` is called when the rule cannot
    be kept (the fence cannot be written for want of space): the session must then give up its lease. ``broken`` is
    called when sending or settling fails in a way that nobody expected; the session ends then, and ``abandon`` answers
    everybody who waits."""

    def __init__(
        self,
        transport: Transport,
        fence: Fence,
        limit: float,
        hopeless: Callable[[ConcurrencyError], None],
        broken: Broken,
    ) -> None:
        self._transport = transport
        self._fence = fence
        self._version = 1
        self._limit = limit
        self._hopeless = hopeless
        self._broken = broken
        self._doubtful: deque[tuple[Request, EtcdError]] = deque()
        self._settling: asyncio.Task[None] | None = None
        self._closed: ConcurrencyError | None = None
        # The head of each group is with the batcher, or under way, or waits to be the head of its other groups too; the
        # others line up behind it. A request joins all its lines at once, so these waits cannot form a cycle.
        self._lines: dict[bytes, deque[Request] | None] = {}
        self._batcher: Batcher[Request | Removal] = Batcher(self._next_batch, self._send, DEPTH, broken)
        self.remover = Remover(transport, self._batcher, limit, broken)

    def submit(self, request: Request) -> asyncio.Future[Reply]:
        if self._closed:
            request.fail(self._closed)
        elif self._line_up(request):
            self._batcher.submit(request)
        return request.reply

    async def commit(self, request: Request) -> Reply:
        """Submit ``request`` and wait for its answer; by itself it is sent from the caller's own task."""
        if self._closed:
            raise self._closed
        if self._line_up(request):
            if self._batcher.free:
                await self._batcher.send_now(request)
            else:
                self._batcher.submit(request)
        return await request.reply

    def _line_up(self, request: Request) -> bool:
        """Join the line of each of its groups; whether it is the head of them all."""
        for group in request.groups:
            if group in self._lines:
                request.ahead += 1
                line = self._lines[group] = self._lines[group] or deque()
                line.append(request)
            else:
                self._lines[group] = None
        return not request.ahead

    async def idle(self) -> None:
        await self._batcher.idle()

    def abandon(self, error: ConcurrencyError) -> None:
        """The session is gone: every request not answered yet fails with ``error``."""
        self._closed = error
        self.remover.abandon(error)
        waiting = [request for line in self._lines.values() for request in line or ()]
        for request in [*self._batcher.empty_queue(), *waiting, *(request for request, _ in self._doubtful)]:
            request.fail(error)
        self._lines.clear()

    async def close(self) -> None:
        if self._settling:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        await self._batcher.close()

    async def _send(self, batch: list[Request | Removal]) -> None:
        try:
            await self._send_batch(batch)
        except Exception as error:
            self._broken("group commit", error)
            for item in batch:
                item.fail(self._closed or SessionLost("the session is over"))

    async def _send_batch(self, batch: list[Request | Removal]) -> None:
        if telemetry.observers:
            telemetry.tell("committed", len(batch))
        requests = [item for item in batch if isinstance(item, Request)]
        removals = [item for item in batch if isinstance(item, Removal)]
        if not requests:
            await self.remover.send(removals)
        elif len(batch) == 1:
            await self._send_alone(requests[0], again=False)
        else:
            await self._send_together(requests, removals)

    async def _send_together(self, requests: Sequence[Request], removals: Sequence[Removal]) -> None:
        # Removals come first: who joins a queue in the same transaction must not find what leaves it.
        then = deletions(removals)
        otherwise = [Get(self._fence.key), *then]
        then += notes(removals)
        compares = [self._guard()]
        for request in requests:
            compares.extend(request.compares)
            then.extend(request.then)
        try:
            result = await self._transport.txn(compares, then, otherwise)
        except EtcdError as error:
            if len(requests) > 1 and error.applied == "no" and not error.retryable:
                await self._send_each(requests)  # one of them is to blame
            else:
                self._failed(requests, error)
            await self.remover.failed(removals, error)
            return
        except asyncio.CancelledError:
            self.remover.interrupted(removals)
            self._interrupted(requests)
            raise
        start = len(then) - sum(len(request.then) for request in requests)
        if not result.succeeded:
            answer(removals, result.results[1:])
            await self._send_each(requests)
            return
        answer(removals, result.results)
        for request in requests:
            end = start + len(request.then)
            request.answer(Reply(True, result.revision, result.results[start:end]))
            self._finished(request)
            start = end

    async def _send_each(self, requests: Sequence[Request]) -> None:
        """A refused request must not fail its neighbours."""
        for number, request in enumerate(requests):
            try:
                await self._send_alone(request, again=False)
            except asyncio.CancelledError:
                self._interrupted(requests[number + 1 :])
                raise

    async def _send_alone(self, request: Request, *, again: bool) -> None:
        repeat = (request.again or ()) if again else ()
        try:
            while True:
                version = self._version
                compares = (self._guard(), *request.compares, *repeat)
                otherwise = (Get(self._fence.key), *request.otherwise)
                result = await self._transport.txn(compares, request.then, otherwise)
                if result.succeeded or self._adopted(result) == version:
                    break
        except EtcdError as error:
            self._failed([request], error)
        except SessionLost as error:
            request.fail(error)
            self._finished(request)
        except asyncio.CancelledError:
            self._interrupted([request])
            raise
        else:
            results = result.results if result.succeeded else result.results[1:]
            request.answer(Reply(result.succeeded, result.revision, results))
            self._finished(request)

    def _finished(self, request: Request) -> None:
        """The request's fate is known: the next one of each of its groups may go."""
        for group in request.groups:
            line = self._lines.get(group)
            if not line:
                self._lines.pop(group, None)
                continue
            following = line.popleft()
            following.ahead -= 1
            if not following.ahead:
                self._batcher.submit(following)

    def _guard(self) -> Compare:
        return Compare(self._fence.key, Target.VERSION, self._version)

    def _adopted(self, refused: TxnResult) -> int:
        """The session's version that etcd has, by a refused transaction; it is the one to use from here on."""
        session = refused.results[0]
        assert isinstance(session, GetResult)
        if not session.kvs:
            raise SessionLost("the session's lease is gone: its key is no longer in etcd")
        self._version = session.kvs[0].version
        return self._version

    def _interrupted(self, requests: Sequence[Request]) -> None:
        """The session closes, or the caller was cancelled in the middle of its own sending: then it is gone, but what
        it asked for may be applied."""
        if self._closed:
            for request in requests:
                request.fail(self._closed)
        else:
            for request in requests:
                request.reply.cancel()
            self._failed(requests, EtcdUnavailable("cancelled", applied="unknown"))

    def _failed(self, requests: Sequence[Request], error: EtcdError) -> None:
        if error.applied == "no" or isinstance(error, EtcdQuotaExceeded):
            for request in requests:
                request.fail(error)
                self._finished(request)
                # A full database answers so although it may have applied the request; it is not in flight any more.
                if error.applied != "no" and request.undo:
                    request.undo()
            return
        loop = asyncio.get_running_loop()
        for request in requests:
            self._doubtful.append((request, error))
            loop.call_later(self._limit, request.fail, error)
        self._batcher.pause()
        if self._settling is None:
            self._settling = supervise(self._settle(), "settling what is in doubt", self._broken)

    async def _settle(self) -> None:
        """Fence off stragglers, then learn the fate of each request in doubt."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._batcher.quiet()
            while self._doubtful:
                try:
                    await self._move_fence()
                except (EtcdQuotaExceeded, EtcdRegressed) as error:
                    self._hopeless(error)
                    return
                except EtcdError as error:
                    if loop.time() - began >= self._limit:  # they have waited long enough
                        for request in [request for line in self._lines.values() for request in line or ()]:
                            request.fail(error)  # it stays in line, and is left out when its turn comes
                        self._tell_queued(error)
                    await asyncio.sleep(_PAUSE)
                    continue
                except SessionLost as error:
                    self.abandon(error)
                    return
                for _ in range(len(self._doubtful)):  # what fails again joins the end, behind the next fence
                    await self._settle_one(*self._doubtful[0])
                    self._doubtful.popleft()
        finally:
            self._settling = None
        self._batcher.resume()

    async def _settle_one(self, request: Request, cause: EtcdError) -> None:
        """Nothing of it can be under way any more: carry it out, or find that it was carried out. One whose caller was
        told of the error, or has gone, is not carried out any more, and taken back if it was."""
        if request.again is not None and not request.reply.done():
            await self._send_alone(request, again=True)
            return
        if request.undo and request.reply.done():
            request.undo()
        request.fail(cause)
        self._finished(request)

    def _tell_queued(self, error: EtcdError) -> None:
        for item in self._batcher.empty_queue():
            item.fail(error)
            if isinstance(item, Request):
                self._finished(item)
            else:
                self._batcher.submit(item)  # it goes on

    async def _move_fence(self) -> None:
        key, value, lease = self._fence
        result = await self._transport.txn((self._guard(),), (Put(key, value, lease),), (Get(key),))
        if result.succeeded:
            self._version += 1
        else:
            # An earlier attempt, its answer lost too, has moved it already; any newer version will do.
            self._adopted(result)

    def _next_batch(self, queue: deque[Request | Removal]) -> list[Request | Removal]:
        """As many as fit one transaction, leaving out requests whose callers have gone."""
        batch: list[Request | Removal] = []
        ops = compares = 1
        size = 0
        while queue:
            item = queue[0]
            alone = False
            if isinstance(item, Removal):
                ops += 2 if item.note else 1
            elif item.reply.done():
                queue.popleft()
                self._finished(item)
                if item.unsent and item.reply.cancelled():
                    item.unsent()
                continue
            else:
                alone = item.alone
                ops += len(item.then)
                compares += len(item.compares)
                size += item.size
            if batch and (alone or ops > MAX_OPS or compares > MAX_OPS or size > MAX_BYTES):
                break
            batch.append(queue.popleft())
            if alone:
                break
        return batch
