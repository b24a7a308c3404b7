"""Deletions: which keys may be used again, what a lost answer means, and when a caller is told of an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdAuthError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdUnavailable,
    SessionLost,
)
from codomyrmex.concurrency.etcd import deletion as deletion_module
from codomyrmex.concurrency.etcd.deletion import Removal, Remover
from codomyrmex.concurrency.etcd.deletion_state import (
    LONG_PAUSE,
    PAUSE,
    AfterFailure,
    Deletion,
    after_failure,
    deletes,
    found,
    markers,
    pause,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Deleted, Done, Op, Put, TxnResult

LOST = EtcdUnavailable("no answer", applied="unknown", retryable=True)
AWAY = EtcdUnavailable("not sent", applied="no", retryable=True)
FORBIDDEN = EtcdAuthError("permission denied", applied="no")
FULL = EtcdQuotaExceeded("full", applied="unknown")


class Silent(Deletion):
    """A deletion whose caller is told nothing."""

    def answer(self, result: bool) -> None:
        pass

    def fail(self, error: ConcurrencyError) -> None:
        pass


def test_a_key_may_be_used_again_only_if_the_first_attempt_was_answered() -> None:
    deletion = Silent(b"k", None, 0.0)
    assert deletion.is_reusable
    deletion.repeated = True
    assert not deletion.is_reusable


def test_after_a_lost_answer_a_missing_key_counts_as_deleted() -> None:
    deletion = Silent(b"k", None, 0.0)
    assert deletion.existed(True) and not deletion.existed(False)
    deletion.repeated = True
    assert deletion.existed(False)


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (LOST, AfterFailure.LATER),
        (AWAY, AfterFailure.LATER),
        (FORBIDDEN, AfterFailure.EACH_ALONE),
        (FULL, AfterFailure.EACH_ALONE),
    ],
)
def test_the_step_after_a_failure(error: EtcdError, step: AfterFailure) -> None:
    assert after_failure(error) is step


def test_a_caller_is_told_once_when_its_time_is_over_or_trying_again_is_vain() -> None:
    deletion = Silent(b"k", None, 10.0)
    assert [deletion.becomes_late(LOST, now, 5.0) for now in (10.0, 14.9, 15.0, 16.0)] == [False, False, True, False]
    assert Silent(b"k", None, 10.0).becomes_late(FORBIDDEN, 10.0, 5.0)


def test_the_pause_is_long_once_every_caller_was_told() -> None:
    one, two = Silent(b"1", None, 0.0), Silent(b"2", None, 0.0, late=True)
    assert (pause([one, two]), pause([two])) == (PAUSE, LONG_PAUSE)


def test_deletes_come_before_markers_so_that_results_are_found_by_position() -> None:
    marker = Put(b"m", b"")
    batch = [Silent(b"1", marker, 0.0), Silent(b"2", None, 0.0)]
    assert [*deletes(batch), *markers(batch)] == [Delete(b"1"), Delete(b"2"), marker]
    assert [deletion.operations for deletion in batch] == [2, 1]
    assert found(Deleted(1)) and not found(Deleted(0)) and not found(Done())


class Etcd:
    """A transport that answers deletions with prepared outcomes, and the queue that sends them at once."""

    free = False

    def __init__(self, *outcomes: int | EtcdError) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[list[Op]] = []
        self.failures: list[BaseException] = []
        self.remover = Remover(cast(Any, self), self, 0.0, lambda name, error: self.failures.append(error))
        self.tasks: list[asyncio.Task[None]] = []

    def submit(self, item: Removal) -> None:
        self.tasks.append(asyncio.create_task(self.remover.send([item])))

    async def send_now(self, item: Removal) -> None:
        await self.remover.send([item])

    async def txn(self, compares: Sequence[object], then: list[Op]) -> TxnResult:
        deleted = await self._outcome(then)
        return TxnResult(True, 2, [Deleted(deleted), *[Done()] * (len(then) - 1)])

    async def delete(self, delete: Delete) -> int:
        return await self._outcome([delete])

    async def _outcome(self, then: list[Op]) -> int:
        self.calls.append(then)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, EtcdError):
            raise outcome
        return outcome


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals are tried again after a millisecond."""
    monkeypatch.setattr(deletion_module, "pause", lambda batch: 0.001)


async def test_a_removal_that_is_answered_at_once_frees_its_key() -> None:
    reusable: list[bool] = []
    etcd = Etcd(1)
    assert await etcd.remover.remove(b"k", reusable.append)
    assert reusable == [True]


@pytest.mark.usefixtures("soon")
async def test_a_removal_goes_on_after_its_caller_was_told_of_an_error() -> None:
    reusable: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    etcd = Etcd(LOST, 0)
    with pytest.raises(EtcdUnavailable):
        await etcd.remover.remove(b"k", reusable.set_result)
    assert await asyncio.wait_for(reusable, 2) is False
    assert len(etcd.calls) == 2 and not etcd.failures


@pytest.mark.usefixtures("soon")
async def test_one_warning_with_a_legible_key_tells_of_all_keys_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd(LOST, LOST, 1, 1, LOST, 1)
    for key in (b"/app/lock/a", b"/app/lock/\xff"), (b"/app/lock/c",):
        gone = [asyncio.get_running_loop().create_future() for _ in key]
        await asyncio.gather(
            *(etcd.remover.remove(one, done.set_result) for one, done in zip(key, gone, strict=True)),
            return_exceptions=True,
        )
        await asyncio.wait_for(asyncio.gather(*gone), 2)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("keys could not be deleted yet, such as '/app/lock/a'; they are tried again")
    assert "'/app/lock/c'" in second


async def test_a_full_database_takes_the_deletion_without_its_marker() -> None:
    etcd, marker = Etcd(FULL, 1), Put(b"m", b"")
    assert await etcd.remover.remove(b"k", None, marker)
    assert etcd.calls == [[Delete(b"k"), marker], [Delete(b"k")]]


async def test_a_closed_session_deletes_nothing_more() -> None:
    etcd = Etcd()
    etcd.remover.abandon(SessionLost("over"))
    with pytest.raises(SessionLost):
        await etcd.remover.remove_and_wait(b"k", lambda _: None)
    assert not etcd.calls
