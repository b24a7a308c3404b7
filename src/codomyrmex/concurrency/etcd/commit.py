"""Group commit: the I/O around the ledger, which holds the rule "never in doubt".

Requests that meet travel in one transaction with the removals that wait meanwhile. Each request is answered by its own
share of the results. ``ledger.py`` decides what is sent, and what an answer, an error or a cancellation means. This
module sends it, reports the outcome to the ledger and executes the actions that the ledger returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, SessionLost, fresh
from codomyrmex.concurrency.etcd.batching import Batcher
from codomyrmex.concurrency.etcd.deletion import Removal, Remover, answer
from codomyrmex.concurrency.etcd.deletion_state import Deletion
from codomyrmex.concurrency.etcd.ledger import Ledger
from codomyrmex.concurrency.etcd.ledger_actions import (
    Action,
    Answer,
    AnswerDeletions,
    EndSession,
    Fail,
    Forget,
    GiveUpLease,
    MoveFence,
    SendAlone,
    Settle,
    Undo,
    Unsent,
)
from codomyrmex.concurrency.etcd.ledger_request import LedgerRequest, Reply
from codomyrmex.concurrency.etcd.ledger_transactions import Fence, Transaction
from codomyrmex.concurrency.etcd.supervision import Broken, supervise
from codomyrmex.concurrency.etcd.transports.protocol import Transport, TxnResult

__all__ = ["Committer", "Fence", "Reply", "Request"]

_PAUSE = 0.1  # seconds between two attempts to move the fence


@dataclass(slots=True, eq=False)
class Request(LedgerRequest):
    """A request with its caller. ``reply`` is completed with the answer or an error, or cancelled by the caller."""

    reply: asyncio.Future[Reply] = field(default_factory=asyncio.Future)

    def is_awaited(self) -> bool:
        """True while its caller waits for the answer."""
        return not self.reply.done()

    def answer(self, reply: Reply) -> None:
        """Give the caller its answer."""
        self.reply.set_result(reply)

    def fail(self, error: ConcurrencyError) -> None:
        """Tell the caller of an error."""
        if not self.reply.done():
            self.reply.set_exception(fresh(error))
            self.reply.exception()  # a caller that is gone leaves no warning

    def forget(self) -> None:
        """Stop waiting for the answer: the caller is gone."""
        self.reply.cancel()


class Committer:
    """Sends requests in shared transactions.

    Args:
        transport: the calls to etcd.
        fence: the session's leased key.
        limit: seconds after which a caller is told that the fate of its request is unknown.
        hopeless: called when the fence cannot be written, for want of space: the session must give up its lease.
        broken: called when sending or settling fails with an unexpected exception. The session ends then, and its
            ``abandon`` answers every caller.
    """

    def __init__(
        self,
        transport: Transport,
        fence: Fence,
        limit: float,
        hopeless: Callable[[ConcurrencyError], None],
        broken: Broken,
    ) -> None:
        self._transport = transport
        self._limit = limit
        self._hopeless = hopeless
        self._broken = broken
        self._ledger = Ledger(fence)
        self._settling: asyncio.Task[None] | None = None
        self._batcher: Batcher[LedgerRequest | Deletion] = Batcher(self._ledger.queue, self._take, self._send, broken)
        self.remover = Remover(transport, self._batcher, limit, broken)

    def submit(self, request: Request) -> asyncio.Future[Reply]:
        """Send ``request`` in the background; returns its reply."""
        if self._ledger.closed:
            request.fail(self._ledger.closed)
        elif self._ledger.submitted(request):
            self._batcher.submit(request)
        return request.reply

    async def commit(self, request: Request) -> Reply:
        """Send ``request`` and wait for its reply. If nothing else is under way the caller's own task sends it."""
        if self._ledger.closed:
            raise self._ledger.closed
        if self._ledger.submitted(request):
            if self._batcher.free:
                self._ledger.sent(request)
                await self._batcher.send_now(request)
            else:
                self._batcher.submit(request)
        return await request.reply

    async def idle(self) -> None:
        """Wait until every request and removal has been sent and answered."""
        await self._batcher.idle()

    def abandon(self, error: ConcurrencyError) -> None:
        """End with the session: every request that is not answered yet fails with ``error``."""
        self.remover.abandon(error)
        self._execute(self._ledger.close(error))

    async def close(self) -> None:
        """Cancel everything under way; returns when it has ended."""
        if self._settling:
            self._settling.cancel()
            await asyncio.gather(self._settling, return_exceptions=True)
        await self._batcher.close()

    def _take(self) -> list[LedgerRequest | Deletion]:
        batch, actions = self._ledger.take()
        self._execute(actions)
        return batch

    async def _send(self, batch: list[LedgerRequest | Deletion]) -> None:
        try:
            await self._send_batch(batch)
        except Exception as error:
            self._broken("group commit", error)
            if not self._ledger.closed:
                self.abandon(SessionLost("the session is over"))
            assert self._ledger.closed
            self._execute(self._ledger.cancelled(_requests(batch)))
            for removal in _removals(batch):
                removal.fail(self._ledger.closed)

    async def _send_batch(self, batch: list[LedgerRequest | Deletion]) -> None:
        if telemetry.observers:
            telemetry.tell("committed", len(batch))
        requests = _requests(batch)
        if not requests:
            await self.remover.send(_removals(batch))
        elif len(batch) == 1:
            await self._send_each(requests)
        else:
            await self._send_together(requests, _removals(batch))

    async def _send_together(self, requests: Sequence[LedgerRequest], removals: Sequence[Removal]) -> None:
        batch = self._ledger.together(requests, removals)
        try:
            result = await self._call(batch.transaction)
        except EtcdError as error:
            await self._send_each(self._execute(self._ledger.failed(requests, error)))
            await self.remover.failed(removals, error)
        except asyncio.CancelledError:
            self.remover.interrupted(removals)
            self._execute(self._ledger.cancelled(requests))
            raise
        else:
            await self._send_each(self._execute(self._ledger.answered(batch, result)))

    async def _send_each(self, requests: list[LedgerRequest]) -> None:
        """Send each request in a transaction of its own, one after another, while the session lasts."""
        while requests and not self._ledger.closed:
            request = requests[0]
            transaction = self._ledger.alone(request)
            try:
                result = await self._call(transaction)
            except EtcdError as error:
                actions = self._ledger.failed([request], error)
            except asyncio.CancelledError:
                self._execute(self._ledger.cancelled(requests))
                raise
            else:
                actions = self._ledger.answered_alone(request, transaction, result)
            requests = [*self._execute(actions), *requests[1:]]
        if requests:
            self._execute(self._ledger.cancelled(requests))

    async def _settle(self) -> None:
        """Settle every request in doubt."""
        began = asyncio.get_running_loop().time()
        try:
            await self._batcher.quiet()
            self._ledger.drained()
            while actions := self._ledger.next_step():
                again = self._execute(actions)
                if isinstance(actions[-1], MoveFence):
                    await self._move_fence(actions[-1].transaction, began)
                await self._send_each(again)
        finally:
            self._settling = None
        self._batcher.wake()

    async def _move_fence(self, transaction: Transaction, began: float) -> None:
        try:
            result = await self._call(transaction)
        except EtcdError as error:
            late = asyncio.get_running_loop().time() - began >= self._limit
            self._execute(self._ledger.fence_failed(error, late=late))
            await asyncio.sleep(_PAUSE)
        else:
            self._execute(self._ledger.fence_moved(result))

    async def _call(self, transaction: Transaction) -> TxnResult:
        return await self._transport.txn(transaction.compares, transaction.then, transaction.otherwise)

    def _execute(self, actions: Iterable[Action]) -> list[LedgerRequest]:
        """Execute the actions; returns the requests to be sent alone."""
        alone: list[LedgerRequest] = []
        for action in actions:
            match action:
                case Answer(request, reply):
                    request.answer(reply)
                case AnswerDeletions(deletions, results):
                    answer(deletions, results)
                case Fail(item, error):
                    item.fail(error)
                case Undo(request):
                    if request.undo:
                        request.undo()
                case Unsent(request):
                    if request.unsent:
                        request.unsent()
                case Forget(request):
                    request.forget()
                case SendAlone(request):
                    alone.append(request)
                case Settle(requests, error):
                    self._start_settling(requests, error)
                case EndSession(error):
                    self.abandon(error)
                case GiveUpLease(error):
                    self._hopeless(error)
                case MoveFence():
                    pass  # ``_settle`` sends it
        if self._ledger.queue.items:
            self._batcher.wake()
        return alone

    def _start_settling(self, requests: Sequence[LedgerRequest], error: EtcdError) -> None:
        loop = asyncio.get_running_loop()
        for request in requests:
            loop.call_later(self._limit, self._overdue, request, error)
        if self._settling is None:
            self._settling = supervise(self._settle(), "settling what is in doubt", self._broken)

    def _overdue(self, request: LedgerRequest, error: EtcdError) -> None:
        self._execute(self._ledger.overdue(request, error))


def _requests(batch: Iterable[LedgerRequest | Deletion]) -> list[LedgerRequest]:
    return [item for item in batch if isinstance(item, LedgerRequest)]


def _removals(batch: Iterable[LedgerRequest | Deletion]) -> list[Removal]:
    return [item for item in batch if isinstance(item, Removal)]
