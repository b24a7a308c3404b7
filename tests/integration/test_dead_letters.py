"""A dead letter queue as its users see it, on a real etcd."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import (
    Attempt,
    ConcurrencyError,
    DeadLetter,
    DeadLetterNotFound,
    DeadLetterQueue,
    Discard,
    LockLost,
    Park,
    PayloadTooLarge,
    QueueFull,
    Retry,
    RetryPolicy,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.dead_letters import record, steps
from codomyrmex.concurrency.dead_letters.spill import Spill
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd
from codomyrmex.concurrency.etcd.transports.protocol import GetResult
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, eventually

QUICK = RetryPolicy(max_attempts=3, initial=0.05, maximum=0.2, jitter=0)


@pytest.fixture
async def dlq(session: Session) -> AsyncIterator[DeadLetterQueue]:
    queue = DeadLetterQueue(session=session, retry=QUICK)
    yield queue
    await queue.close()


async def store_one(dlq: DeadLetterQueue, operation: str = "fetch", **args: Any) -> str:
    return await dlq.add(operation=operation, args=args or {"url": "x"}, error=ValueError("no answer from 10.1.2.3"))


async def state(dlq: DeadLetterQueue, entry_id: str) -> str:
    entry = await dlq.get(entry_id)
    return entry.state if entry else "gone"


async def reaches(dlq: DeadLetterQueue, entry_id: str, wanted: str) -> DeadLetter:
    async def there() -> bool:
        return await state(dlq, entry_id) == wanted

    await eventually(there)
    entry = await dlq.get(entry_id)
    assert entry
    return entry


async def test_a_failure_is_kept_with_all_that_is_known(dlq: DeadLetterQueue, session: Session) -> None:
    try:
        raise KeyError("missing")
    except KeyError as error:
        entry_id = await dlq.add(
            operation="import", args={"file": "a.csv", "rows": [1, 2]}, error=error, metadata={"by": 1}
        )
    entry = await dlq.get(entry_id)
    assert entry and entry.id == entry_id and entry.state == "waiting"
    assert (entry.operation, entry.args, entry.metadata) == ("import", {"file": "a.csv", "rows": [1, 2]}, {"by": 1})
    assert (entry.error, entry.error_type) == ("'missing'", "KeyError") and "raise KeyError" in entry.traceback
    assert entry.attempt_count == entry.crash_count == 0 and entry.next_attempt_at and entry.key.endswith(entry_id)
    assert await dlq.count() == 1 and await dlq.get("nothing") is None


async def test_entries_are_listed_by_page_and_filtered(dlq: DeadLetterQueue) -> None:
    ids = await asyncio.gather(*(store_one(dlq, "a" if n % 2 else "b", n=n) for n in range(150)))
    assert await dlq.count() == 150
    assert [e.id for e in await dlq.list_entries()] == sorted(ids)
    assert len(await dlq.list_entries(operation="a")) == 75
    assert len(await dlq.list_entries(limit=7)) == 7 and await dlq.list_entries(limit=0) == []
    assert await dlq.list_entries(state="parked") == []
    assert await dlq.list_entries(since=datetime.now(UTC) + timedelta(hours=1)) == []


async def test_the_same_failure_of_other_data_has_the_same_fingerprint(dlq: DeadLetterQueue) -> None:
    ids = [
        await dlq.add(operation="fetch", args={}, error=ValueError(text))
        for text in ("no answer from 10.1.2.3", "no answer from 10.9.9.9", "refused by 10.1.2.3")
    ]
    one, two, three = [entry.fingerprint for entry in await dlq.list_entries() if entry.id in ids]
    assert one == two != three


async def test_a_failure_with_a_dedup_key_is_stored_once_until_it_is_resolved(dlq: DeadLetterQueue) -> None:
    async def add() -> str:
        return await dlq.add(operation="x", args={}, error="bad", dedup_key="order-7")

    first = await add()
    assert await add() == first and await dlq.count() == 1
    await dlq.discard(first, reason="test")
    assert await add() != first and await dlq.count() == 2


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"args": {"x": object()}}, TypeError, "args must be JSON"),
        ({"args": {"x": float("nan")}}, TypeError, "args must be JSON"),
        ({"args": [1]}, TypeError, "args must be a dict"),
        ({"metadata": {"x": {1, 2}}}, TypeError, "metadata must be JSON"),
        ({"operation": ""}, ValueError, "operation must be"),
        ({"operation": "a\nb"}, ValueError, "operation must be"),
        ({"args": {"x": "y" * (1 << 20)}}, PayloadTooLarge, "and 1048576 fit"),
    ],
)
async def test_what_cannot_be_stored_is_refused(
    dlq: DeadLetterQueue, wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await dlq.add(**{"operation": "x", "args": {}, "error": "bad", **wrong})
    assert await dlq.count() == 0


async def test_texts_are_redacted_before_they_are_stored(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, redact=lambda text: text.replace("s3cret", "***"))
    try:
        raise ValueError("token s3cret refused")
    except ValueError as error:
        entry = await dlq.get(await dlq.add(operation="x", args={}, error=error))
    assert entry and entry.error == "token *** refused" and "s3cret" not in entry.traceback


async def test_a_due_entry_is_retried_and_resolved(dlq: DeadLetterQueue) -> None:
    seen: list[tuple[dict[str, Any], int]] = []

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        seen.append((entry.args, attempt.number))
        await attempt.checkpoint()

    before = await store_one(dlq, n=1)
    async with dlq.worker():
        entry = await reaches(dlq, before, "resolved")
        started = time.monotonic()
        after = await store_one(dlq, n=2)
        await eventually(lambda: len(seen) == 2)
        assert time.monotonic() - started < 0.5
        await reaches(dlq, after, "resolved")
    assert seen == [({"n": 1}, 1), ({"n": 2}, 1)]
    assert [a.outcome for a in entry.attempts] == ["ok"] and entry.attempt_count == 1


async def test_a_failing_handler_is_retried_after_delays_then_parked(dlq: DeadLetterQueue) -> None:
    times: list[float] = []

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        times.append(time.monotonic())
        raise OSError(f"attempt {attempt.number}")

    entry_id = await store_one(dlq)
    async with dlq.worker():
        entry = await reaches(dlq, entry_id, "parked")
    assert [a.error for a in entry.attempts] == [f"OSError: attempt {n}" for n in (1, 2, 3)]
    assert entry.attempt_count == 3 and entry.crash_count == 0 and "used up" in entry.reason
    assert times[1] - times[0] >= 0.05 and times[2] - times[1] >= 0.1
    assert entry.next_attempt_at is None


async def test_a_handler_decides_what_becomes_of_its_entry(dlq: DeadLetterQueue) -> None:
    @dlq.handler("decide")
    async def decide(entry: DeadLetter, attempt: Attempt) -> None:
        if entry.args["do"] == "park":
            raise Park("ask a person")
        if entry.args["do"] == "discard":
            raise Discard("obsolete")
        if attempt.number == 1:
            raise Retry(delay=0.3)

    started = time.monotonic()
    ids = [await store_one(dlq, "decide", do=what) for what in ("park", "discard", "retry")]
    async with dlq.worker():
        one = await reaches(dlq, ids[0], "parked")
        two = await reaches(dlq, ids[1], "resolved")
        three = await reaches(dlq, ids[2], "resolved")
    assert one.reason == "ask a person" and two.reason == "obsolete"
    assert [a.outcome for a in three.attempts] == ["failed", "ok"] and time.monotonic() - started >= 0.3


async def test_what_the_policy_gives_up_on_is_parked_at_once(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, retry=RetryPolicy(give_up_on=(PermissionError,)))

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        raise PermissionError("no")

    entry_id = await store_one(dlq)
    async with dlq.worker():
        entry = await reaches(dlq, entry_id, "parked")
    assert entry.attempt_count == 1 and "not to be retried" in entry.reason


async def test_without_a_handler_an_entry_waits_until_there_is_one(dlq: DeadLetterQueue) -> None:
    entry_id = await store_one(dlq, "later")
    async with dlq.worker():
        await asyncio.sleep(0.3)
        entry = await dlq.get(entry_id)
        assert entry and entry.state == "waiting" and entry.attempt_count == 0

        @dlq.handler("later")
        async def later(entry: DeadLetter, attempt: Attempt) -> None:
            pass

        await reaches(dlq, entry_id, "resolved")


async def test_only_async_functions_handle_and_each_operation_once(dlq: DeadLetterQueue) -> None:
    with pytest.raises(TypeError, match="must be an async def"):
        dlq.handler("x")(lambda entry, attempt: None)  # type: ignore[arg-type, return-value]

    @dlq.handler("x")
    async def one(entry: DeadLetter, attempt: Attempt) -> None: ...

    with pytest.raises(ValueError, match="has a handler already"):
        dlq.handler("x")(one)

    async def takes_nothing() -> None: ...

    with pytest.raises(TypeError, match="two arguments"):
        dlq.handler("y")(takes_nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="operation's name"):
        dlq.handler(one)  # type: ignore[arg-type]
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="concurrency"):
            dlq.worker(concurrency=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delay"):
        Retry(delay=-1)


async def test_each_entry_is_run_by_one_worker_at_a_time(session: Session, other: Session) -> None:
    running: set[str] = set()
    runs: list[str] = []

    def queue(session: Session) -> DeadLetterQueue:
        dlq = DeadLetterQueue(session=session, retry=QUICK)

        @dlq.handler("fetch")
        async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
            assert entry.id not in running
            running.add(entry.id)
            runs.append(entry.id)
            await asyncio.sleep(0.01)
            running.discard(entry.id)
            if attempt.number == 1:
                raise OSError("again")

        return dlq

    here, there = queue(session), queue(other)
    ids = await asyncio.gather(*(store_one(here, n=n) for n in range(40)))
    async with here.worker(), there.worker():
        for entry_id in ids:
            entry = await reaches(here, entry_id, "resolved")
            assert [a.outcome for a in entry.attempts] == ["failed", "ok"]
    assert sorted(runs) == sorted([*ids, *ids])


async def test_a_worker_decodes_each_record_once(
    dlq: DeadLetterQueue, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await store_one(dlq, n=n) for n in range(5)]
    decoded: Counter[str] = Counter()
    original = record.decode

    def counted(key: bytes, value: bytes) -> DeadLetter | None:
        entry = original(key, value)
        decoded[entry.id if entry else ""] += 1
        return entry

    monkeypatch.setattr(record, "decode", counted)
    failed: set[str] = set()

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        if entry.id not in failed:
            failed.add(entry.id)
            raise Retry(0)

    async with dlq.worker() as worker:
        await worker.settled()
    assert decoded == Counter(ids)
    assert {entry.attempt_count for entry in await dlq.list_entries(state="resolved")} == {2}


async def test_a_worker_begins_while_it_reads_a_long_queue(
    dlq: DeadLetterQueue, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(store_one(dlq, n=n) for n in range(50)))
    begun, read_on = asyncio.Event(), asyncio.Event()
    original = Store.pages

    async def halting(self: Store, prefix: bytes, revision: int = 0) -> AsyncIterator[GetResult]:
        async for page in original(self, prefix, revision):
            yield page
            if prefix == self.entries:
                await read_on.wait()

    monkeypatch.setattr(Store, "pages", halting)

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        begun.set()

    async with dlq.worker() as worker:
        await asyncio.wait_for(begun.wait(), 5)
        read_on.set()
        await worker.settled()
    assert len(await dlq.list_entries(state="resolved")) == 50


async def test_a_worker_that_dies_costs_an_attempt_and_a_crash(session: Session, other: Session) -> None:
    dying, living = DeadLetterQueue(session=other, retry=QUICK), DeadLetterQueue(session=session, retry=QUICK)
    entry_id = await store_one(living)
    stored = await Store(core_of(other), "default", 60).get(entry_id)
    assert stored and await Store(core_of(other), "default", 60).claim(stored)
    done: list[int] = []

    @living.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        done.append(attempt.number)

    async with living.worker():
        await asyncio.sleep(0.3)
        assert await state(living, entry_id) == "running" and not done
        await other.close()
        entry = await reaches(living, entry_id, "resolved")
    assert done == [2] and entry.crash_count == 1 and [a.outcome for a in entry.attempts] == ["crashed", "ok"]
    await dying.close()


async def test_an_entry_that_kills_its_workers_is_parked_before_it_runs_again(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, retry=RetryPolicy(max_attempts=10, initial=0.01, jitter=0))
    entry_id = await store_one(dlq)
    store = Store(core_of(session), "default", 60)

    @dlq.handler("other")
    async def other(entry: DeadLetter, attempt: Attempt) -> None: ...

    for crashes in (1, 2, 3):
        stored = await store.get(entry_id)
        assert stored and await store.claim(stored)
        await core_of(session).remover.remove_and_wait(
            store.claim_key(entry_id), lambda _: None
        )  # as a lease's end does
        async with dlq.worker():
            entry = await reaches(dlq, entry_id, "parked" if crashes == 3 else "waiting")
        assert entry.crash_count == crashes
    assert "killed 3 workers" in entry.reason


async def test_delays_survive_the_loss_of_every_worker(dlq: DeadLetterQueue, session: Session) -> None:
    first = DeadLetterQueue("d", session=session, retry=RetryPolicy(initial=0.8, jitter=0))
    second = DeadLetterQueue("d", session=session, retry=QUICK)
    times: list[float] = []

    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        times.append(time.monotonic())
        if attempt.number == 1:
            raise OSError("again")

    first.handler("fetch")(fetch)
    second.handler("fetch")(fetch)
    entry_id = await store_one(first)
    async with first.worker():
        await eventually(lambda: len(times) == 1)
        await reaches(first, entry_id, "waiting")
    async with second.worker():
        await reaches(second, entry_id, "resolved")
    assert 0.7 <= times[1] - times[0] < 2


async def test_nothing_is_asked_of_etcd_while_nothing_is_due(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, retry=RetryPolicy(initial=60))

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        raise OSError("later")

    entry_id = await store_one(dlq)
    async with dlq.worker():
        await eventually(lambda: _attempted(dlq, entry_id))
        await asyncio.sleep(0.2)
        with counting(session) as calls:
            await asyncio.sleep(1.0)
    assert not calls


async def _attempted(dlq: DeadLetterQueue, entry_id: str) -> bool:
    entry = await dlq.get(entry_id)
    return entry is not None and entry.state == "waiting" and entry.attempt_count == 1


async def test_leaving_waits_for_handlers_and_a_cancel_puts_entries_back(dlq: DeadLetterQueue) -> None:
    began, done = asyncio.Event(), False

    @dlq.handler("slow")
    async def slow(entry: DeadLetter, attempt: Attempt) -> None:
        nonlocal done
        began.set()
        await asyncio.sleep(0.3)
        done = True

    entry_id = await store_one(dlq, "slow")
    with pytest.raises(RuntimeError):
        async with dlq.worker():
            await began.wait()
            raise RuntimeError("the block fails")
    entry = await dlq.get(entry_id)
    assert not done and entry and entry.state == "waiting" and entry.attempt_count == 0
    assert [a.outcome for a in entry.attempts] == ["interrupted"]
    began.clear()
    async with dlq.worker():
        await began.wait()
    assert done and await state(dlq, entry_id) == "resolved"


async def test_replay_discard_and_their_errors(dlq: DeadLetterQueue) -> None:
    entry_id = await store_one(dlq)
    began, go = asyncio.Event(), asyncio.Event()

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        began.set()
        await go.wait()
        raise Park("look at it")

    async with dlq.worker():
        await began.wait()
        for change in (dlq.replay(entry_id), dlq.discard(entry_id, reason="x")):
            with pytest.raises(ConcurrencyError, match="being retried right now"):
                await change
        go.set()
        await reaches(dlq, entry_id, "parked")
    again = await dlq.replay(entry_id)
    assert again.state == "waiting" and again.attempt_count == 0 and len(again.attempts) == 1
    gone = await dlq.discard(entry_id, reason="not needed")
    assert gone.state == "resolved" and gone.reason == "not needed"
    with pytest.raises(DeadLetterNotFound):
        await dlq.replay("nothing")
    with pytest.raises(ValueError, match="reason"):
        await dlq.discard(entry_id, reason=" ")


async def test_replaying_all_takes_each_once_and_keeps_its_rate(dlq: DeadLetterQueue) -> None:
    runs: list[str] = []

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        runs.append(entry.id)
        raise Park("still bad")

    ids = [await store_one(dlq, n=n) for n in range(10)]
    async with dlq.worker():
        for entry_id in ids:
            await reaches(dlq, entry_id, "parked")
        runs.clear()
        started = time.monotonic()
        assert await dlq.replay_all(operation="fetch", rate=50) == 10
        assert time.monotonic() - started >= 9 / 50
        await eventually(lambda: len(runs) == 10)
        await asyncio.sleep(0.2)
    assert sorted(runs) == sorted(ids)
    assert await dlq.replay_all(operation="another") == 0
    with pytest.raises(ValueError, match="rate"):
        await dlq.replay_all(rate=0)


async def test_purge_removes_what_is_over_and_nothing_else(dlq: DeadLetterQueue) -> None:
    resolved, waiting = await store_one(dlq), await store_one(dlq)
    await dlq.discard(resolved, reason="x")
    assert await dlq.purge(before=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert await dlq.purge() == 1
    assert [entry.id for entry in await dlq.list_entries()] == [waiting]
    assert await dlq.purge(state="waiting") == 1 and await dlq.count() == 0
    with pytest.raises(ValueError, match="time zone"):
        await dlq.purge(before=datetime.now())


async def test_resolved_entries_vanish_after_their_retention(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, retention=1.0)
    resolved, waiting = await store_one(dlq), await store_one(dlq)
    await dlq.discard(resolved, reason="x")
    assert await dlq.count() == 2

    async def one_left() -> bool:
        return await dlq.count() == 1

    await eventually(one_left, limit=8)
    assert await state(dlq, waiting) == "waiting"


async def test_a_full_queue_makes_room_by_what_is_resolved_and_else_refuses(session: Session) -> None:
    dlq = DeadLetterQueue(session=session, max_entries=2)
    first = await store_one(dlq)
    await store_one(dlq)
    with pytest.raises(QueueFull, match="holds 2 entries"):
        await store_one(dlq)
    await dlq.discard(first, reason="x")
    await store_one(dlq)
    assert await dlq.count() == 2 and await state(dlq, first) == "gone"


@pytest.mark.parametrize("wrong", [{"retention": 0}, {"retention": -1}, {"max_entries": 0}, {"max_entries": True}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DeadLetterQueue(**wrong)


async def test_everybody_sees_what_happens(dlq: DeadLetterQueue, other: Session) -> None:
    first = await store_one(dlq)
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async for entry in DeadLetterQueue(session=other).watch():
            seen.append((entry.id, entry.state))

    following = asyncio.create_task(follow())
    await eventually(lambda: seen)
    second = await store_one(dlq)
    await dlq.discard(first, reason="x")
    await eventually(lambda: len(seen) == 3)
    assert seen == [(first, "waiting"), (second, "waiting"), (first, "resolved")]
    await other.close()
    with pytest.raises(SessionLost):
        await asyncio.wait_for(following, 2)


async def test_a_worker_without_a_session_ends_its_block(dlq: DeadLetterQueue, other: Session) -> None:
    mine = DeadLetterQueue(session=other)
    with pytest.raises(SessionLost):
        async with mine.worker():
            await other.close()
            await asyncio.sleep(5)
    assert asyncio.current_task() is not None and not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_a_handler_learns_that_its_claim_is_gone(dlq: DeadLetterQueue, session: Session) -> None:
    told: list[BaseException] = []
    began = asyncio.Event()

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None:
        began.set()
        for _ in range(100):
            await asyncio.sleep(0.02)
            try:
                await attempt.checkpoint()
            except LockLost as error:
                told.append(error)
                raise

    entry_id = await store_one(dlq)
    async with dlq.worker():
        await began.wait()
        await core_of(session).remover.remove_and_wait(
            Store(core_of(session), "default", 1).claim_key(entry_id), lambda _: None
        )
        await eventually(lambda: told)


async def test_a_foreign_value_among_the_entries_is_passed_over(dlq: DeadLetterQueue, session: Session) -> None:
    from codomyrmex.concurrency.etcd.transports.protocol import Put

    await core_of(session).transport.txn((), (Put(Store(core_of(session), "default", 1).entries + b"junk", b"\xff"),))
    entry_id = await store_one(dlq)

    @dlq.handler("fetch")
    async def fetch(entry: DeadLetter, attempt: Attempt) -> None: ...

    async with dlq.worker():
        await reaches(dlq, entry_id, "resolved")
    assert len(await dlq.list_entries()) == 1


async def test_with_etcd_away_a_failed_task_is_spilled_and_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    async with EmbeddedEtcd(data_dir=tmp_path / "etcd") as etcd:
        session = Session(endpoints=etcd.endpoint, dial_timeout=0.3, request_timeout=0.3, session_ttl=10)
        async with session:
            dlq = DeadLetterQueue("spilling", session=session)
            await dlq.count()
            await etcd.stop()
            routed = await dlq.route(operation="f", args={"x": object()}, error=ValueError("bad"), metadata={})
            assert routed.id and "not in etcd yet" in routed.note
            spill = Spill(session.settings.namespace, "spilling")
            (path,) = spill.waiting()
            line = json.loads(path.read_bytes().splitlines()[1])
            assert line["id"] == routed.id and line["metadata"]["args_not_json"] is True
            started = time.monotonic()
            await dlq.route(operation="f", args={"x": 1}, error=ValueError("bad"), metadata={})
            assert time.monotonic() - started < 0.3  # the next one does not wait for etcd again
            await etcd.start()
            await eventually(lambda: not spill.waiting(), limit=15)
            assert {entry.id for entry in await dlq.list_entries()} >= {routed.id}
            assert await dlq.count() == 2
            await dlq.close()


async def test_settled_waits_for_everything_that_is_handled_here_and_nothing_else(session: Session) -> None:
    queue = DeadLetterQueue("settled", session=session, retry=RetryPolicy(max_attempts=2, initial=0.2, jitter=0))
    seen: list[int] = []

    @queue.handler("flaky")
    async def flaky(entry: DeadLetter, attempt: Attempt) -> None:
        seen.append(attempt.number)
        if attempt.number == 1:
            raise ValueError("once more")

    await queue.add(operation="unhandled", args={}, error="e")
    async with queue.worker() as worker:
        await asyncio.wait_for(worker.settled(), 5)
        assert seen == []
        for _ in range(3):
            await queue.add(operation="flaky", args={}, error="e")
            await asyncio.wait_for(worker.settled(), 5)
        assert seen == [1, 2] * 3
    assert [one.state for one in await queue.list_entries("flaky")] == ["resolved"] * 3


async def test_only_whoever_holds_the_claim_writes_how_an_attempt_ended(session: Session, other: Session) -> None:
    queue = DeadLetterQueue("late", session=session)
    entry_id = await queue.add(operation="x", args={}, error="e")
    slow, quick = Store(core_of(session), "late", 60.0), Store(core_of(other), "late", 60.0)
    stored = await slow.get(entry_id)
    assert stored
    first = await slow.claim(stored)
    assert first and await quick.claim(stored) is None
    await core_of(other).remover.remove(slow.claim_key(entry_id))  # as the end of its lease does
    crashed = await quick.get(entry_id)
    assert crashed and await quick.change(crashed, steps.crashed(crashed.entry, RetryPolicy(initial=0.0), record.now()))
    waiting = await quick.get(entry_id)
    assert waiting
    second = await quick.claim(waiting)
    assert second and second.token > first.token
    assert not await slow.finish(first, steps.succeeded(first.entry, record.now()))
    now = await queue.get(entry_id)
    assert now and now.state == "running" and now.attempt_count == 2
    assert await quick.finish(second, steps.succeeded(second.entry, record.now()))


async def test_settled_ends_with_the_worker(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as own:
        queue = DeadLetterQueue("settled", session=own)
        queue.handler("slow")(_sleep)
        await queue.add(operation="slow", args={}, error="e")
        with pytest.raises(SessionLost):
            async with queue.worker() as worker:
                waiting = asyncio.create_task(worker.settled())
                await asyncio.sleep(0.2)
                assert not waiting.done()
                await own.close()
                await asyncio.sleep(5)
        with pytest.raises(SessionLost):
            await asyncio.wait_for(waiting, 5)


async def _sleep(entry: DeadLetter, attempt: Attempt) -> None:
    await asyncio.sleep(60)


async def test_only_parked_entries_are_replayed_if_so_asked(session: Session) -> None:
    async with DeadLetterQueue("states", session=session) as queue:
        parked, waiting = [await queue.add(operation="x", args={}, error="e") for _ in range(2)]
        store = await queue._opened()
        stored = await store.get(parked)
        claim = await store.claim(stored) if stored else None
        assert claim and await store.finish(claim, steps.parked(claim.entry, "test", record.now()))
        before = await store.get(waiting)
        assert await queue.replay_all(state="parked") == 1
        assert await store.get(waiting) == before
        changed = await queue.get(parked)
        assert changed and changed.state == "waiting"


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_errors_that_are_odd_are_kept_all_the_same(session: Session) -> None:
    queue = DeadLetterQueue("odd", session=session, retry=RetryPolicy(max_attempts=1))

    @queue.handler("mute")
    async def mute(entry: DeadLetter, attempt: Attempt) -> None:
        raise _Mute

    @queue.handler("exit")
    async def leave(entry: DeadLetter, attempt: Attempt) -> None:
        raise SystemExit("\udcff")

    ids = [await queue.add(operation=name, args={"a": (1, 2)}, error=_Mute()) for name in ("mute", "exit")]
    ids.append(await queue.add(operation="nobody", args={}, error="a file called \udcff"))
    async with queue.worker() as worker:
        await asyncio.wait_for(worker.settled(), 5)
    entries = await queue.list_entries()
    assert [entry.id for entry in entries] == ids
    assert [entry.state for entry in entries] == ["parked", "parked", "waiting"]
    assert entries[0].args == {"a": [1, 2]} and "\\udcff" in entries[2].error


async def test_what_cannot_be_meant_is_refused(dlq: DeadLetterQueue) -> None:
    with pytest.raises(TypeError, match="error must be"):
        await dlq.add(operation="x", args={}, error=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="args must be JSON"):
        await dlq.add(operation="x", args={"a": "\ud800"}, error="e")
    with pytest.raises(ValueError, match="limit"):
        await dlq.list_entries(limit=-1)
    with pytest.raises(ValueError, match="time zone"):
        await dlq.list_entries(since=datetime(2026, 1, 1))
    assert await dlq.count() == 0


async def test_a_block_that_fails_at_any_moment_gives_every_claim_back(session: Session, other: Session) -> None:
    """The worker may be claiming, handling or finishing: nothing stays claimed, and nothing counts as a crash."""
    for number in range(25):
        queue = DeadLetterQueue("quick", session=session)
        queue.handler("x")(_briefly)
        for _ in range(4):
            await queue.add(operation="x", args={}, error="e")
        with pytest.raises(ZeroDivisionError):
            async with queue.worker(concurrency=4):
                await asyncio.sleep(number * 0.0005)
                raise ZeroDivisionError
        store = Store(core_of(other), "quick", 60.0)
        claims = [kv.key async for page in store.pages(store.claims) for kv in page.kvs]
        entries = await queue.list_entries()
        assert claims == [] and not any(entry.crash_count or entry.state == "running" for entry in entries)


async def _briefly(entry: DeadLetter, attempt: Attempt) -> None:
    await asyncio.sleep(0.002)
