"""The rule "never in doubt", which settles every doubt, as a state machine: pure, without I/O, clock or event loop.

Every transaction with requests compares the version of the session's leased key, the fence (not to be confused with a
lock's fencing token). When an answer is lost, the
transaction may have been applied, or may still be applied later. Then nothing new is sent until the doubt is settled:

1. The transactions under way come to an end (``DRAINING``).
2. The fence is moved: its version grows, and a late transaction can no longer commit (``FENCING``).
3. Each request in doubt is sent again with its ``again`` compares, which make that harmless (``SETTLING``). A request
   that must not be repeated, or whose caller is gone or was told of an error, is not sent; it is undone.

So a request takes effect exactly once or not at all, and its caller is told the truth or that the fate is unknown. A
request whose caller was told "unknown" is not carried out afterwards.

``commit.py`` reports events to the ledger and executes the actions that it returns, in order. An event that cannot
happen raises ``ImpossibleEvent``. The ledger asks a request one thing that it cannot know: whether its caller still
waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from copy import copy

from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdRegressed,
    EtcdUnavailable,
    SessionLost,
)
from codomyrmex.concurrency.etcd.deletion_state import Deletion
from codomyrmex.concurrency.etcd.group_lines import GroupLines
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
from codomyrmex.concurrency.etcd.ledger_phase import PHASES, Phase, Step
from codomyrmex.concurrency.etcd.ledger_request import Event, ImpossibleEvent, LedgerRequest, Reply, State
from codomyrmex.concurrency.etcd.ledger_transactions import (
    Batch,
    Fence,
    Room,
    Transaction,
    alone,
    fence_version,
    fence_write,
    shares,
    together,
)
from codomyrmex.concurrency.etcd.send_queue import SendQueue
from codomyrmex.concurrency.etcd.transports.protocol import TxnResult

DEPTH = 2  # batches under way at a time
ENOUGH = 16  # items for a second one: a batch costs this process and etcd as much as some ten items


class Ledger:
    """The requests of a session that are not settled, and the version of its fence."""

    def __init__(self, fence: Fence, depth: int = DEPTH) -> None:
        self.queue: SendQueue[LedgerRequest | Deletion] = SendQueue(depth, ENOUGH)
        self.phase = Phase.OPEN
        self.closed: ConcurrencyError | None = None  # the reason why the session is over
        self.version = 1
        self._fence = fence
        self._lines = GroupLines()
        self._in_doubt: deque[tuple[LedgerRequest, EtcdError]] = deque()
        self._fenced = 0  # the number of requests at the front of those in doubt that cannot be applied any more
        self._repeated: LedgerRequest | None = None  # the request that is sent again now

    # Requests come in and are sent

    def submitted(self, request: LedgerRequest) -> bool:
        """A caller hands in a request. True if it may be sent; else it waits in line."""
        if self.closed:
            raise ImpossibleEvent("a request was submitted to a session that is over") from self.closed
        return self._lines.join(request)

    def sent(self, request: LedgerRequest) -> None:
        """``request`` is being sent at once and by itself."""
        if self.phase is not Phase.OPEN:
            raise ImpossibleEvent(f"a request was sent while the ledger is {self.phase.name}")
        request.change(Event.SEND)

    def take(self) -> tuple[list[LedgerRequest | Deletion], list[Action]]:
        """The next batch from the queue: as many items as fit one transaction. They count as sent.

        Requests that nobody waits for are left out; the actions tell of them.
        """
        if self.phase is not Phase.OPEN:
            raise ImpossibleEvent(f"a batch was taken while the ledger is {self.phase.name}")
        items = self.queue.items
        room = Room()
        batch: list[LedgerRequest | Deletion] = []
        actions: list[Action] = []
        while items:
            item = items[0]
            if isinstance(item, LedgerRequest) and not self._waits(item):
                items.popleft()
                actions += self._left_out(item)
            elif room.admits(item):
                batch.append(items.popleft())
                if isinstance(item, LedgerRequest):
                    item.change(Event.SEND)
            else:
                break
        return batch, actions

    def together(self, requests: Sequence[LedgerRequest], deletions: Sequence[Deletion]) -> Batch:
        """The transaction of a batch with more than one item."""
        return together(self._fence, self.version, requests, deletions)

    def alone(self, request: LedgerRequest) -> Transaction:
        """The transaction of a request that travels by itself."""
        return alone(self._fence, self.version, request)

    # Answers and errors

    def answered(self, batch: Batch, result: TxnResult) -> list[Action]:
        """etcd answered a batch. If a compare failed, each request goes alone: one must not fail its neighbours."""
        if not result.succeeded:
            return [AnswerDeletions(batch.deletions, result.results[1:]), *self._each_alone(batch.requests)]
        actions: list[Action] = [AnswerDeletions(batch.deletions, result.results)]
        for request, share in shares(batch, result):
            actions += self._answer(request, Reply(True, result.revision, share))
        return actions

    def answered_alone(self, request: LedgerRequest, sent: Transaction, result: TxnResult) -> Sequence[Action]:
        """etcd answered a request that travelled alone. If it was refused for an old version only, it is sent again
        with the fence's present one."""
        if result.succeeded:
            return self._answer(request, Reply(True, result.revision, result.results))
        if not self._adopt(result):
            return self._fail([request], _lease_is_gone())
        if self.version != sent.version:
            if request.state is State.SENT_AGAIN and not self._waits(request):
                return self._taken_back(request)  # its caller was told of the doubt while it was on its way
            return self._each_alone([request])
        return self._answer(request, Reply(False, result.revision, result.results[1:]))

    def failed(self, requests: Sequence[LedgerRequest], error: EtcdError) -> Sequence[Action]:
        """The transaction of ``requests`` ended in an error instead of an answer."""
        if self.closed:
            return self._fail(requests, self.closed)
        if len(requests) > 1 and error.applied == "no" and not error.retryable:
            return self._each_alone(requests)  # one of them is to blame
        if error.applied == "no" and requests[0].state is State.SENT_AGAIN:
            error = _unsure(error)  # it is about the repetition: the first attempt may have been applied
        elif error.applied == "no":
            return self._fail(requests, error)
        elif not isinstance(error, EtcdQuotaExceeded):
            return self._answer_lost(requests, error)
        # A repetition was refused, or the database is full and may have applied what it refuses. In either case no
        # transaction of the request is pending, so it can be undone.
        return [*self._fail(requests, error), *(Undo(request) for request in requests if request.undo)]

    def cancelled(self, requests: Sequence[LedgerRequest]) -> list[Action]:
        """The sending of ``requests`` was cancelled: by the end of the session, or by a caller that sent its request
        itself. That caller is gone, but its request may be applied."""
        requests = [request for request in requests if request.state is not State.SETTLED]
        if self.closed:
            return self._fail(requests, self.closed)
        if not requests:
            return []
        error = EtcdUnavailable("cancelled", applied="unknown")
        return [*(Forget(request) for request in requests), *self._answer_lost(requests, error)]

    def overdue(self, request: LedgerRequest, error: EtcdError) -> Sequence[Action]:
        """The time limit of a request in doubt is over: its caller waits no longer."""
        return self._tell(request, error)

    # Settling

    def drained(self) -> None:
        """No transaction is under way any more."""
        if self.queue.active:
            raise ImpossibleEvent("the fence was to be moved while transactions are under way")
        if not self.closed:
            self._step(Step.DRAINED)

    def next_step(self) -> list[Action]:
        """The next actions of settling. The last one is ``MoveFence`` or ``SendAlone``, else settling is over."""
        actions: list[Action] = []
        self._repeated = None
        while self.phase is Phase.SETTLING and self._fenced:
            self._fenced -= 1
            request, cause = self._in_doubt.popleft()
            if request.again is not None and self._waits(request):
                request.change(Event.SEND)
                self._repeated = request
                return [*actions, SendAlone(request)]
            if self._waits(request):
                actions += self._fail([request], cause, Event.DROP)
            else:
                actions += self._taken_back(request, Event.DROP)
        if self.phase is Phase.SETTLING:
            self._step(Step.STILL_IN_DOUBT if self._in_doubt else Step.ALL_SETTLED)
            self.queue.paused = bool(self._in_doubt)
        if self.phase is Phase.FENCING:
            actions.append(MoveFence(fence_write(self._fence, self.version)))
        return actions

    def fence_moved(self, result: TxnResult) -> list[Action]:
        """etcd answered the write of the fence. A refusal means that an earlier attempt, its answer lost too, has moved
        the fence already: any newer version will do."""
        if self.closed:
            return []
        if result.succeeded:
            self.version += 1
        elif not self._adopt(result):
            return [EndSession(_lease_is_gone())]
        self._step(Step.FENCE_MOVED)
        self._fenced = len(self._in_doubt)
        return []

    def fence_failed(self, error: EtcdError, *, late: bool) -> list[Action]:
        """The write of the fence ended in an error. After the time limit (``late``) the callers that wait behind the
        doubt are told of it."""
        if self.closed:
            return []
        if isinstance(error, EtcdQuotaExceeded | EtcdRegressed):
            self._step(Step.GIVEN_UP)
            return [GiveUpLease(error)]
        actions: list[Action] = []
        if late:
            for request in self._lines.waiting():  # it stays in line, and is left out when its turn comes
                actions += self._tell(request, error)
            for item in self.queue.empty():
                if isinstance(item, Deletion):
                    actions.append(Fail(item, error))
                    self.queue.items.append(item)  # it goes on
                else:
                    actions += self._tell(item, error)
                    actions += self._left_out(item)
        return actions

    def close(self, error: ConcurrencyError) -> list[Action]:
        """The session is over. Queued, waiting and repeated requests fail now. A first attempt that is under way fails
        when its transaction ends."""
        self._step(Step.CLOSED)
        self.closed = error
        actions: list[Action] = []
        requests = [*self._lines.waiting(), *(request for request, _ in self._in_doubt)]
        self._lines.clear()
        self._in_doubt.clear()
        for item in self.queue.empty():
            if isinstance(item, Deletion):
                actions.append(Fail(item, error))
            else:
                requests.append(item)
        for request in requests:
            if request.state is not State.SETTLED:
                actions += self._fail([request], error, Event.DROP)
        if self._repeated:
            actions += self._tell(self._repeated, error)
        return actions

    # The parts of these

    def _answer(self, request: LedgerRequest, reply: Reply) -> tuple[Action, ...]:
        if self._waits(request):
            request.told = True
            self._settled(request)
            return (Answer(request, reply),)
        return self._taken_back(request)

    def _taken_back(self, request: LedgerRequest, event: Event = Event.SETTLE) -> tuple[Action, ...]:
        """The request was or may have been applied, and nobody waits for it."""
        self._settled(request, event)
        return (Undo(request),) if request.undo else ()

    def _tell(self, request: LedgerRequest, error: ConcurrencyError) -> tuple[Action, ...]:
        if not self._waits(request):
            return ()
        request.told = True
        return (Fail(request, error),)

    def _fail(
        self, requests: Iterable[LedgerRequest], error: ConcurrencyError, event: Event = Event.SETTLE
    ) -> list[Action]:
        actions: list[Action] = []
        for request in requests:
            actions += self._tell(request, error)
            self._settled(request, event)
        return actions

    def _left_out(self, request: LedgerRequest) -> tuple[Action, ...]:
        """A request from the queue is not sent, because nobody waits for it."""
        self._settled(request, Event.DROP)
        return (Unsent(request),) if request.unsent and not request.told else ()

    def _answer_lost(self, requests: Sequence[LedgerRequest], error: EtcdError) -> list[Action]:
        self._step(Step.LOST)
        self.queue.paused = True
        for request in requests:
            request.change(Event.LOSE)
            self._in_doubt.append((request, error))
        return [Settle(requests, error)]

    def _each_alone(self, requests: Sequence[LedgerRequest]) -> list[Action]:
        """Send each of the requests alone; none of them was applied."""
        return self._fail(requests, self.closed) if self.closed else [SendAlone(request) for request in requests]

    def _settled(self, request: LedgerRequest, event: Event = Event.SETTLE) -> None:
        """The request's fate is known: its successors may go."""
        request.change(event)
        self.queue.items.extend(self._lines.leave(request))

    def _adopt(self, refused: TxnResult) -> bool:
        """Use the fence's version in etcd, which a refused transaction reads. False if the key is gone."""
        version = fence_version(refused)
        self.version = version or self.version
        return bool(version)

    def _step(self, step: Step) -> None:
        phase = PHASES.get((self.phase, step))
        if phase is None:
            raise ImpossibleEvent(f"the ledger is {self.phase.name}: {step.name} cannot happen")
        self.phase = phase

    @staticmethod
    def _waits(request: LedgerRequest) -> bool:
        """True if the caller of ``request`` waits and was told nothing yet."""
        return not request.told and request.is_awaited()


def _lease_is_gone() -> SessionLost:
    return SessionLost("the session's lease is gone: its key is no longer in etcd")


def _unsure(error: EtcdError) -> EtcdError:
    """The same error, for a request that may have been applied."""
    unsure = copy(error)
    unsure.applied = "unknown"
    return unsure
