"""The rule "never in doubt" over generated histories of a simulated etcd, and the checker over broken ledgers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdQuotaExceeded, EtcdUnavailable
from codomyrmex.concurrency.etcd.ledger import Ledger
from codomyrmex.concurrency.etcd.ledger_actions import Action, Answer, Undo
from codomyrmex.concurrency.etcd.ledger_phase import Phase, Step
from codomyrmex.concurrency.etcd.ledger_request import Event, ImpossibleEvent, LedgerRequest, Reply
from codomyrmex.concurrency.etcd.ledger_transactions import Fence, Transaction
from codomyrmex.concurrency.etcd.transports.protocol import TxnResult
from tests.unit.etcd.ledger_world import FENCE, Caller, play

HISTORIES = 1000


def numbers(seed: int) -> Iterator[int]:
    chance = random.Random(seed)
    for _ in range(chance.choice([60, 200, 600])):
        yield chance.randrange(10_000)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 9_999), max_size=250))
def test_each_request_takes_effect_once_or_not_at_all_and_its_caller_knows(tape: list[int]) -> None:
    assert play(Ledger, tape) == []


def test_the_same_over_long_histories() -> None:
    for seed in range(HISTORIES):
        assert play(Ledger, numbers(seed)) == [], seed


class MovesNoFence(Ledger):
    """Sends requests in doubt again although their first transactions may still commit."""

    def next_step(self) -> list[Action]:
        if self.phase is Phase.FENCING:
            self._step(Step.FENCE_MOVED)
            self._fenced = len(self._in_doubt)
        return super().next_step()


class ComparesNoFence(Ledger):
    """Sends transactions that commit whatever the fence's version is."""

    def alone(self, request: LedgerRequest) -> Transaction:
        transaction = super().alone(request)
        return transaction._replace(compares=transaction.compares[1:])


class ForgetsUndo(Ledger):
    """Leaves in etcd what nobody waits for."""

    def _taken_back(self, request: LedgerRequest, event: Event = Event.SETTLE) -> tuple[Action, ...]:
        self._settled(request, event)
        return ()


class UndoesAnswered(Ledger):
    """Takes back a request whose caller has the answer."""

    def _answer(self, request: LedgerRequest, reply: Reply) -> tuple[Action, ...]:
        return (*super()._answer(request, reply), Undo(request))


class SendsDuringDoubt(Ledger):
    """Goes on with other requests while one is in doubt."""

    def _answer_lost(self, requests: Sequence[LedgerRequest], error: EtcdError) -> list[Action]:
        actions = super()._answer_lost(requests, error)
        self.queue.paused = False
        return actions

    def take(self):  # type: ignore[no-untyped-def]
        phase, self.phase = self.phase, Phase.OPEN
        try:
            return super().take()
        finally:
            self.phase = phase


class RepeatsWhatMustNotBe(Ledger):
    """Sends a request again that says nothing of how to repeat it."""

    def submitted(self, request: LedgerRequest) -> bool:
        request.again = request.again or ()
        return super().submitted(request)


class ForgetsTheOtherCompares(Ledger):
    """Sends a request again without the compares that make that harmless."""

    def alone(self, request: LedgerRequest) -> Transaction:
        transaction = super().alone(request)
        return transaction._replace(compares=transaction.compares[: 1 + len(request.compares)])


class AnswersTwice(Ledger):
    def _answer(self, request: LedgerRequest, reply: Reply) -> tuple[Action, ...]:
        actions = super()._answer(request, reply)
        return (*actions, *(action for action in actions if isinstance(action, Answer)))


class RepeatsForNobody(Ledger):
    """Carries a request out after its caller was told that its fate is unknown."""

    @staticmethod
    def _waits(request: LedgerRequest) -> bool:
        return True


class BelievesEachRefusal(Ledger):
    """Takes the refusal of an old version of the fence for one of the request's own compares."""

    def answered_alone(self, request: LedgerRequest, sent: Transaction, result: TxnResult) -> Sequence[Action]:
        actions = super().answered_alone(request, sent._replace(version=self.version), result)
        return actions if actions else super().answered_alone(request, sent, result)

    def _adopt(self, refused: TxnResult) -> bool:
        return True


class IgnoresGroups(Ledger):
    """Sends requests that share a group side by side."""

    def submitted(self, request: LedgerRequest) -> bool:
        request.change(Event.MAKE_READY)
        return True


class LeavesSuccessorsInLine(Ledger):
    def _settled(self, request: LedgerRequest, event: Event = Event.SETTLE) -> None:
        request.change(event)


class ForgetsWaitersAtTheEnd(Ledger):
    """Tells nobody that the session is over."""

    def close(self, error: ConcurrencyError) -> list[Action]:
        super().close(error)
        return []


class TrustsARefusedRepetition(Ledger):
    """Says of a request that it had no effect when only its repetition had none."""

    def failed(self, requests: Sequence[LedgerRequest], error: EtcdError) -> Sequence[Action]:
        if error.applied == "no" and len(requests) == 1:
            return self._fail(requests, error)
        return super().failed(requests, error)


class MixesShares(Ledger):
    """Gives each request of a batch the results of the first."""

    def answered(self, batch, result):  # type: ignore[no-untyped-def]
        if not result.succeeded:
            return super().answered(batch, result)
        start = len(batch.transaction.then) - sum(len(request.then) for request in batch.requests)
        shared = result.results[start:]
        return [a for r in batch.requests for a in self._answer(r, Reply(True, result.revision, shared))]


BROKEN = [
    MovesNoFence,
    ComparesNoFence,
    ForgetsUndo,
    UndoesAnswered,
    SendsDuringDoubt,
    RepeatsWhatMustNotBe,
    ForgetsTheOtherCompares,
    AnswersTwice,
    RepeatsForNobody,
    BelievesEachRefusal,
    IgnoresGroups,
    LeavesSuccessorsInLine,
    ForgetsWaitersAtTheEnd,
    TrustsARefusedRepetition,
    MixesShares,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_the_checker_rejects_broken_ledgers(broken: Callable[[Fence], Ledger]) -> None:
    problems = (problem for seed in range(2000) for problem in play(broken, numbers(seed)))
    assert any(not problem.startswith("impossible") for problem in problems)


def caller(**arguments: object) -> Caller:
    return Caller(groups=(b"g",), then=(), **arguments)  # type: ignore[arg-type]


def test_an_impossible_event_raises() -> None:
    ledger, request = Ledger(FENCE), caller()
    assert ledger.submitted(request)
    with pytest.raises(ImpossibleEvent, match="READY"):
        ledger.answered_alone(request, ledger.alone(request), TxnResult(True, 2, ()))
    ledger.sent(request)
    with pytest.raises(ImpossibleEvent, match="OPEN"):
        ledger.drained()
    ledger.failed([request], EtcdUnavailable("lost", applied="unknown"))
    with pytest.raises(ImpossibleEvent, match="DRAINING"):
        ledger.take()
    with pytest.raises(ImpossibleEvent, match="DRAINING"):
        ledger.fence_moved(TxnResult(True, 3, ()))
    other = caller()
    other.groups = (b"other",)
    assert ledger.submitted(other)
    with pytest.raises(ImpossibleEvent, match="DRAINING"):
        ledger.sent(other)
    ledger.close(EtcdError("over"))
    with pytest.raises(ImpossibleEvent, match="over"):
        ledger.submitted(caller())


def test_the_fence_is_not_moved_while_a_transaction_is_under_way() -> None:
    ledger, request = Ledger(FENCE), caller()
    ledger.submitted(request)
    ledger.queue.begin(0.0)
    ledger.sent(request)
    ledger.failed([request], EtcdUnavailable("lost", applied="unknown"))
    with pytest.raises(ImpossibleEvent, match="under way"):
        ledger.drained()


def test_a_full_database_is_given_up_only_where_the_fence_cannot_be_written() -> None:
    ledger, request = Ledger(FENCE), caller(undo=lambda: None)
    ledger.submitted(request)
    ledger.sent(request)
    full = EtcdQuotaExceeded("full", applied="unknown")
    kinds = [type(action).__name__ for action in ledger.failed([request], full)]
    assert kinds == ["Fail", "Undo"] and ledger.phase is Phase.OPEN
    second = caller()
    ledger.submitted(second)
    ledger.sent(second)
    ledger.failed([second], EtcdUnavailable("lost", applied="unknown"))
    ledger.drained()
    assert [type(action).__name__ for action in ledger.next_step()] == ["MoveFence"]
    assert [type(action).__name__ for action in ledger.fence_failed(full, late=False)] == ["GiveUpLease"]
    assert ledger.next_step() == []
