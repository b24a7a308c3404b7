"""Workers of dead letters under faults: no claim stays without a runner, and what is due is done in the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import (
    Attempt,
    DeadLetter,
    DeadLetterQueue,
    EmbeddedEtcd,
    Park,
    PayloadTooLarge,
    Retry,
    RetryPolicy,
    Session,
)
from codomyrmex.concurrency.dead_letters import follower, record, steps, texts, worker
from codomyrmex.concurrency.dead_letters.attempts import Attempts
from codomyrmex.concurrency.dead_letters.follower import Follower
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Put
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually, gateway
from tests.integration.test_faults import through_proxy
from tests.integration.test_together import fill

QUICK = RetryPolicy(max_attempts=3, initial=0.05, maximum=0.2, jitter=0)


def queue_on(session: Session, **options: Any) -> DeadLetterQueue:
    return DeadLetterQueue("q", session=session, retry=QUICK, **options)


async def claims(session: Session) -> list[str]:
    store = Store(core_of(session), "q", 60)
    return [store.id_of(kv.key) async for kv in store.all_claims()]


async def states(dlq: DeadLetterQueue) -> set[str]:
    return {entry.state for entry in await dlq.list_entries()}


async def nothing_claimed(session: Session) -> bool:
    return not await claims(session)


# Etcd stands still while a worker claims


def loses_the_answer(proxy: TcpProxy) -> None:
    proxy.blackhole(up=False)


def holds_the_request(proxy: TcpProxy) -> None:
    proxy.blackhole(down=False)


def goes_away(proxy: TcpProxy) -> None:
    proxy.refuse()
    proxy.cut()


@pytest.mark.parametrize("stand_still", [loses_the_answer, holds_the_request, goes_away])
async def test_a_claim_that_its_worker_gave_up_waiting_for_has_a_runner_or_is_undone(
    stand_still: Callable[[TcpProxy], None], etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    async with through_proxy(etcd, namespace, request_timeout=0.5, session_ttl=30) as (proxy, session):
        mine, theirs = queue_on(session), queue_on(other)
        runs: list[tuple[str, int]] = []

        @mine.handler("x")
        async def handle(entry: DeadLetter, attempt: Attempt) -> None:
            runs.append((entry.id, attempt.token))
            if len(runs) <= 8:
                raise Retry(delay=0.6)

        for _ in range(8):
            await theirs.add(operation="x", args={}, error="e")
        async with mine.worker(8):
            await eventually(lambda: len(runs) == 8)
            await asyncio.sleep(0.3)
            stand_still(proxy)
            await asyncio.sleep(2)  # their claims meet it; more than twice the time limit
            proxy.resume()
            await eventually(lambda: _all(theirs, {"resolved"}), 15)
            assert not session.lost.is_set()
        assert await claims(other) == []
        for entry in await theirs.list_entries():
            begun = sum(entry_id == entry.id for entry_id, _ in runs)
            counted = [a for a in entry.attempts if a.outcome != "interrupted"]
            assert len(counted) == entry.attempt_count == begun == 2


async def _all(dlq: DeadLetterQueue, wanted: set[str]) -> bool:
    return await states(dlq) == wanted


async def test_a_claim_that_is_undone_after_its_worker_has_left(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    """The session lives on, and no worker is there to look."""
    async with through_proxy(etcd, namespace, request_timeout=0.3, session_ttl=30) as (proxy, session):
        mine, theirs = queue_on(session), queue_on(other)
        runs: list[str] = []

        @mine.handler("x")
        async def handle(entry: DeadLetter, attempt: Attempt) -> None:
            runs.append(entry.id)
            raise Retry(delay=0.3)

        entry_id = await theirs.add(operation="x", args={}, error="e")
        async with mine.worker():
            await eventually(lambda: runs)
            await asyncio.sleep(0.1)
            proxy.blackhole(up=False)
            await eventually(lambda: _all(theirs, {"running"}))
        proxy.resume()
        await eventually(lambda: _all(theirs, {"waiting"}), 10)
        assert await claims(other) == []
        entry = await theirs.get(entry_id)
        assert entry and entry.attempt_count == len(runs) == 1


async def test_a_stray_claim_of_the_own_session_is_found_by_the_look_round(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_LOOK_ROUND", 0.2)
    dlq, store = queue_on(session), Store(core_of(session), "q", 60)
    entry_id = await dlq.add(operation="x", args={}, error="e")
    stored = await store.get(entry_id)
    assert stored
    running = record.encode(steps.claimed(stored.entry, "host", 1, record.now()))
    mark = b"%016x nobody" % session.id
    await core_of(session).transport.txn(
        (), (Put(store.claim_key(entry_id), mark, session.id), Put(store.key(entry_id), running))
    )
    done = []

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        done.append(attempt.number)

    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 5)
    assert done == [1] and await states(dlq) == {"resolved"}


@pytest.mark.parametrize("state", ["waiting", "running"])
async def test_a_value_without_a_lease_under_a_claims_key_blocks_nobody(state: str, session: Session) -> None:
    dlq, store = queue_on(session), Store(core_of(session), "q", 60)
    entry_id = await dlq.add(operation="x", args={}, error="e")
    await core_of(session).transport.txn((), (Put(store.claim_key(entry_id), b"garbage"),))
    if state == "running":
        stored = await store.get(entry_id)
        assert stored
        running = record.encode(steps.claimed(stored.entry, "host", 1, record.now()))
        await core_of(session).transport.txn((), (Put(store.key(entry_id), running),))

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        assert attempt.number == (1 if state == "waiting" else 2)

    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 20)
    assert await states(dlq) == {"resolved"} and await claims(session) == []


# Leaving


@pytest.mark.parametrize("cancels", [1, 2])
async def test_leaving_that_is_cancelled_leaves_no_claim_and_writes_every_outcome(
    cancels: int, session: Session, other: Session
) -> None:
    dlq = queue_on(session)
    begun: list[str] = []
    ended: list[str] = []

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        begun.append(entry.id)
        await asyncio.sleep(0.05 if len(begun) < 20 else 30)
        ended.append(entry.id)

    for _ in range(60):
        await dlq.add(operation="x", args={}, error="e")

    async def work() -> None:
        async with dlq.worker(16):
            await eventually(lambda: len(begun) >= 24)

    leaving = asyncio.create_task(work())
    await eventually(lambda: len(begun) >= 24)
    await asyncio.sleep(0.2)
    for _ in range(cancels):
        leaving.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(leaving, 5)
    await eventually(lambda: nothing_claimed(other))  # at once with one cancel, soon with two
    found = {entry.id: entry for entry in await dlq.list_entries()}
    assert {entry.state for entry in found.values()} == {"resolved", "waiting"}
    assert {entry_id for entry_id, entry in found.items() if entry.state == "resolved"} == set(ended)
    assert all(found[entry_id].attempt_count == 0 for entry_id in set(begun) - set(ended))
    assert session.alive


async def test_leaving_waits_for_a_handler_that_hangs_for_drain_timeout_and_no_longer(session: Session) -> None:
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        await asyncio.Event().wait()

    await dlq.add(operation="x", args={}, error="e")
    async with asyncio.timeout(10):
        async with dlq.worker(drain_timeout=0.3):
            await eventually(lambda: _all(dlq, {"running"}))
    (entry,) = await dlq.list_entries()
    assert entry.state == "waiting" and entry.attempt_count == 0 and entry.attempts[-1].outcome == "interrupted"
    with pytest.raises(ValueError, match="drain_timeout"):
        dlq.worker(drain_timeout=-1)


async def test_a_handler_that_ignores_its_cancel_keeps_its_claim_and_nobody_waiting(
    session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "_GRACE", 0.2)
    dlq = queue_on(session)
    let_go = asyncio.Event()

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    await dlq.add(operation="x", args={}, error="e")
    async with asyncio.timeout(10):
        async with dlq.worker(drain_timeout=0.1):
            await eventually(lambda: _all(dlq, {"running"}))
    assert "ignore that they were cancelled" in caplog.text
    assert await states(dlq) == {"running"} and len(await claims(session)) == 1  # it is still at work
    let_go.set()
    await eventually(lambda: _all(dlq, {"resolved"}))
    assert await claims(session) == []


# A full database


async def test_what_was_due_in_a_full_database_is_done_when_there_is_space_again(namespace: str) -> None:
    async with (
        EmbeddedEtcd(args=[f"--quota-backend-bytes={16 << 20}"]) as own,
        Session(endpoints=own.endpoint, namespace=namespace, session_ttl=5) as session,
    ):
        dlq = queue_on(session)
        ids = [await dlq.add(operation="x", args={}, error="e") for _ in range(20)]
        await fill(session)
        done: list[str] = []

        @dlq.handler("x")
        async def handle(entry: DeadLetter, attempt: Attempt) -> None:
            done.append(entry.id)

        async with dlq.worker() as working:
            await asyncio.sleep(1.5)
            assert not done and session.alive
            await make_space(own, session)
            await asyncio.wait_for(working.settled(), 20)
        assert sorted(done) == sorted(ids) and await states(dlq) == {"resolved"}


async def make_space(own: EmbeddedEtcd, session: Session) -> None:
    """Do what an operator does: delete, compact, defragment, disarm."""

    async def call(path: str, **body: object) -> dict[str, Any]:
        return await asyncio.to_thread(gateway, own.endpoint, path, **body)

    await core_of(session).transport.delete(Delete(b"/filler/", b"/filler0"))
    revision = (await core_of(session).transport.member(own.endpoint)).revision
    await call("kv/compaction", revision=revision, physical=True)
    await call("maintenance/defragment")
    for alarm in (await call("maintenance/alarm", action="GET"))["alarms"]:
        await call("maintenance/alarm", action="DEACTIVATE", **alarm)


# Sizes


async def test_reasons_and_errors_of_any_size_are_shortened_and_never_hang_the_loop(session: Session) -> None:
    dlq = queue_on(session)
    huge = "x" * 2_000_000

    @dlq.handler("park")
    async def park(entry: DeadLetter, attempt: Attempt) -> None:
        raise Park(huge)

    @dlq.handler("fail")
    async def fail(entry: DeadLetter, attempt: Attempt) -> None:
        raise ValueError("\x01" * 2_000_000)

    ids = [await dlq.add(operation=name, args={}, error=huge) for name in ("park", "fail")]
    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 10)
    parked, failed = [await dlq.get(entry_id) for entry_id in ids]
    assert parked and parked.state == "parked" and parked.reason.endswith("(shortened)")
    assert failed and failed.state == "parked" and len(failed.attempts) == 3
    by_hand = await dlq.discard(ids[0], reason=huge)
    assert by_hand.reason.endswith("(shortened)") and len(by_hand.reason) <= texts.MAX_TEXT


async def test_whatever_fits_when_it_is_added_can_be_tried_as_often_as_the_policy_says(session: Session) -> None:
    """Arguments up to the last byte that fits, and attempts that say all they may."""
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        raise ValueError("\x01" * 100_000)

    async def add(size: int) -> str:
        return await dlq.add(operation="x", args={"text": "a" * size}, error="\x01" * 100_000, metadata={"m": "x"})

    small, large = 0, record.MAX_RECORD
    while large - small > 1:  # the largest that is taken
        middle = (small + large) // 2
        try:
            record.encode(record.new("x", {"text": "a" * middle}, "\x01" * 100_000, {"m": "x"}, str))
            small = middle
        except PayloadTooLarge:
            large = middle
    entry_id = await add(small)
    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 20)
    entry = await dlq.get(entry_id)
    assert entry and entry.state == "parked" and entry.attempt_count == 3 and len(entry.args["text"]) == small
    assert (await dlq.replay(entry_id)).state == "waiting"


# Handlers that do what nobody expects


async def test_a_cancel_that_a_handler_leaves_pending_strikes_at_nothing(session: Session) -> None:
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        task = asyncio.current_task()
        assert task
        asyncio.get_running_loop().call_soon(task.cancel)
        if entry.args["now"]:
            task.cancel()

    for now in (True, False) * 4:
        await dlq.add(operation="x", args={"now": now}, error="e")
    async with dlq.worker(2) as working:
        await asyncio.wait_for(working.settled(), 10)
    assert await states(dlq) <= {"resolved", "parked"} and await claims(session) == []


class Unusual(BaseException):
    pass


@pytest.mark.parametrize("problem", [StopIteration, GeneratorExit, SystemExit, asyncio.CancelledError, Unusual])
async def test_a_handler_that_raises_what_ends_others_ends_its_attempt_alone(
    problem: type[BaseException], session: Session
) -> None:
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        raise problem

    await dlq.add(operation="x", args={}, error="e")
    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 10)
    (entry,) = await dlq.list_entries()
    assert entry.state == "parked" and entry.attempts[-1].outcome == "failed" and await claims(session) == []


async def test_whatever_a_handler_does_to_its_arguments_the_record_keeps_them(session: Session) -> None:
    """Else the next attempt, or a person, would find them gone, or nothing could be written at all."""
    dlq = queue_on(session)
    given = {"to": "a@example.org", "all": [1, {"deep": 2}]}

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        assert entry.args == given and entry.metadata == {"m": [1]}
        entry.args.pop("to")
        entry.args["all"][1]["deep"] = object()
        entry.metadata["huge"] = "x" * 3_000_000
        raise ValueError("it failed")

    entry_id = await dlq.add(operation="x", args=given, error="e", metadata={"m": [1]})
    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 10)
    entry = await dlq.get(entry_id)
    assert entry and entry.state == "parked" and entry.attempt_count == 3 and entry.args == given
    assert all("it failed" in attempt.error for attempt in entry.attempts)


async def test_an_outcome_that_cannot_be_written_leaves_no_claim_for_good(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_LOOK_ROUND", 0.2)
    original, broken = Store.finish, []

    async def finish(self: Store, claim: Any, entry: DeadLetter) -> bool:
        if not broken:
            broken.append(entry.id)
            raise RuntimeError("a bug that nobody expects")
        return await original(self, claim, entry)

    monkeypatch.setattr(Store, "finish", finish)
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        pass

    await dlq.add(operation="x", args={}, error="e")
    with pytest.raises(RuntimeError, match="nobody expects"):
        async with dlq.worker():
            await asyncio.sleep(30)
    assert len(await claims(session)) == 1
    async with dlq.worker() as working:  # the same session's next worker gives it back
        await asyncio.wait_for(working.settled(), 10)
    assert await states(dlq) == {"resolved"} and await claims(session) == []


async def test_every_text_that_is_stored_passes_the_redaction(session: Session) -> None:
    dlq = queue_on(session, redact=lambda text: text.replace("secret", "***"))
    entry_id = await dlq.add(operation="x", args={}, error="a secret")
    discarded = await dlq.discard(entry_id, reason="it was a secret")
    assert "secret" not in repr(discarded) and discarded.reason == "it was a ***"


async def test_a_redaction_that_fails_withholds_the_text_and_loses_no_outcome(session: Session) -> None:
    def redact(text: str) -> str:
        if "secret" in text:
            raise RuntimeError("cannot redact")
        return None if "none" in text else text  # type: ignore[return-value]

    dlq = queue_on(session, redact=redact)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        raise Park(entry.args["text"])

    ids = [await dlq.add(operation="x", args={"text": text}, error=text) for text in ("a secret", "none", "plain")]
    async with dlq.worker() as working:
        await asyncio.wait_for(working.settled(), 10)
    reasons = [entry.reason for entry_id in ids if (entry := await dlq.get(entry_id))]
    assert reasons[2] == "plain" and all("withheld" in reason for reason in reasons[:2])


def test_a_delay_beyond_all_bounds_is_refused() -> None:
    for delay in (1e300, float("inf"), float("nan"), -1):
        with pytest.raises(ValueError, match="delay must be"):
            Retry(delay=delay)


# Deaths of the worker's own parts


@pytest.mark.parametrize(
    ("owner", "part"), [(Follower, "follow"), (Follower, "look_round"), (Attempts, "claim"), (Attempts, "_handle")]
)
async def test_a_worker_one_of_whose_parts_dies_ends_with_the_reason_at_once(
    owner: type, part: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bug(*_: Any) -> None:
        await asyncio.sleep(0.1)
        raise RuntimeError("a bug that nobody expects")

    monkeypatch.setattr(owner, part, bug)
    dlq = queue_on(session)

    @dlq.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        raise AssertionError("it is never run")

    await dlq.add(operation="x", args={}, error="e")
    with pytest.raises(RuntimeError, match="nobody expects"):
        async with asyncio.timeout(10):
            async with dlq.worker():
                await asyncio.sleep(30)
    assert await states(dlq) == {"waiting"} and await claims(session) == []
