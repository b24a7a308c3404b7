"""Elections: one leader at a time with a fencing token, terms that observers miss none of, values that stay JSON."""

from __future__ import annotations

import asyncio
import unicodedata
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from codomyrmex.concurrency import (
    DistributedLock,
    Election,
    FencedWriteRejected,
    Group,
    Leader,
    LockLost,
    LockManager,
    LockTimeout,
    Session,
    SessionLost,
    telemetry,
)
from codomyrmex.concurrency.etcd.transports.protocol import GetResult, Put
from codomyrmex.concurrency.keys import ELECTION
from codomyrmex.concurrency.prometheus import Metrics
from codomyrmex.concurrency.recipes.election import queues
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import record_wait, shared_values
from tests.helpers import eventually, revoke
from tests.integration.test_metrics import Told

LARGEST = "x" * (64 * 1024 - 2)  # as JSON, with its quotes


class Observed:
    """The terms and values that an observer is told."""

    def __init__(self, stack: AsyncExitStack, session: Session, name: str = "e") -> None:
        self.leaders: list[Leader] = []
        self._task = asyncio.create_task(self._follow(Election(name, session)))
        stack.push_async_callback(self._end)

    @property
    def tokens(self) -> list[int]:
        return [leader.token for leader in self.leaders]

    @property
    def values(self) -> list[object]:
        return [leader.value for leader in self.leaders]

    async def _follow(self, election: Election) -> None:
        async for leader in election.observe():
            self.leaders.append(leader)

    async def _end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def candidate(stack: AsyncExitStack, session: Session, value: object = None) -> asyncio.Task[None]:
    """A task that campaigns, and leads until it is cancelled."""

    async def campaign() -> None:
        with suppress(LockLost, SessionLost):
            async with Election("e", session).campaign(value):
                await asyncio.Event().wait()

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    task = asyncio.create_task(campaign())
    stack.push_async_callback(end)
    return task


async def all_observe(observed: list[Observed], session: Session) -> None:
    """Wait until all observers have begun; each is told of one term."""
    async with Election("e", session).campaign("first"):
        await eventually(lambda: all(one.leaders for one in observed), 15)


async def leads(session: Session, value: object, name: str = "e") -> Leader:
    """Wait until the leader has this value."""

    async def found() -> Leader | None:
        leader = await Election(name, session).leader()
        return leader if leader and leader.value == value else None

    leader: Leader = await eventually(found)
    return leader


# Terms and values


async def test_candidates_lead_in_order_of_arrival_and_tokens_rise(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    observed = Observed(stack, other)
    assert await Election("e", session).leader() is None
    async with Election("e", session).campaign({"url": "http://one"}) as first:
        later = await candidate(stack, other, ["two"])
        await eventually(lambda: observed.leaders)
        leader = await Election("e", other).leader()
        assert leader and (leader.name, leader.value, leader.token) == ("e", {"url": "http://one"}, first.token)
        assert leader.owner.session == f"{session.id:016x}" and first.value == {"url": "http://one"}
        assert await first.grant.put("/elected", str(first.token)) > first.token
        with pytest.raises(LockTimeout, match=r"the election 'e' was not granted within 0\.05 s"):
            async with Election("e", session).campaign(timeout=0.05):
                raise AssertionError("two lead")
    second = await leads(session, ["two"])
    assert second.token > first.token
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    assert await Election("e", session).leader() is None
    await eventually(lambda: observed.tokens == [first.token, second.token])


async def test_values_are_json_and_each_new_one_is_told(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    values = [None, 1, True, 1.0, "1", [1], {"a": {"b": [None, 2.5, "é\u202e\x1b[31m"]}}, LARGEST, False, 0, {}]
    observed = Observed(stack, other)
    async with Election("e", session).campaign(values[0]) as term:
        await eventually(lambda: observed.values == [None])
        for value in values[1:]:
            await term.proclaim(value)
            assert term.value is value
        await term.proclaim(values[-1])  # the same again is no news
        await term.grant.progress("note")
        await eventually(lambda: len(observed.values) >= len(values))
        found = await Election("e", other).leader()
    assert list(map(repr, observed.values)) == list(map(repr, values)) and set(observed.tokens) == {term.token}
    assert found and found.value == {} and found.owner.note == "note" and found.owner.progress == len(values) + 1


async def test_a_note_a_value_and_the_wait_stay_beside_each_other(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codomyrmex.concurrency.waitqueue.entry.LASTING", 0.0)
    assert record_wait.LASTING == 0.5  # the others' time is not changed
    async with Election("e", session, metadata={"agent": "a"}).campaign("begun") as term:

        async def recorded() -> Leader | None:
            leader = await Election("e", other).leader()
            return leader if leader and leader.owner.waited is not None else None

        assert (await eventually(recorded)).value == "begun"
        for number in range(3):
            await term.grant.progress(f"note {number}")
            await term.proclaim(number)
            await asyncio.gather(term.grant.progress(), term.proclaim([number]))
            leader = await Election("e", other).leader()
            assert leader and (leader.value, leader.owner.note) == ([number], f"note {number}")
            assert leader.owner.metadata == {"agent": "a"} and leader.owner.waited is not None
            assert leader.token == term.token


async def test_an_election_and_a_lock_of_one_name_are_apart_and_names_are_in_nfc(
    session: Session, other: Session
) -> None:
    name = unicodedata.normalize("NFD", "wähle")
    election = Election(name, session)
    async with (
        DistributedLock(name, other) as lock,
        election.campaign("mine") as term,
        LockManager(session).acquire_paths([""], tree=name),
    ):
        assert lock.name == term.grant.name == election.name == unicodedata.normalize("NFC", "wähle")
        leader = await Election(unicodedata.normalize("NFC", "wähle"), other).leader()
        assert leader and leader.value == "mine"
        assert [info.kind for info in await LockManager(session).locks()] == ["lock", "path"]
        assert (await LockManager(session).info(name)).holders[0].token == lock.token  # type: ignore[union-attr]


async def test_at_a_handover_the_next_candidate_is_the_leader_at_once(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    former = await candidate(stack, other, "old")
    old = await leads(session, "old")
    await candidate(stack, session, "new")

    async def waits() -> bool:
        return len((await shared_values.read(core_of(session), queues("e"))).entries) == 2

    await eventually(waits)
    await revoke(session, other.id)
    found = await Election("e", session).leader()
    assert found and found.token > old.token and found.value == "new"
    await former


async def test_a_foreign_key_in_an_election_is_no_leader(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    queue = core_of(session).layout.queue("e", ELECTION)
    await core_of(session).transport.txn((), (Put(queue + b"foreign", b"not leased"),))
    assert await Election("e", other).leader() is None
    observed = Observed(stack, other)
    async with Election("e", session).campaign("mine") as term:
        found = await Election("e", other).leader()
        assert found and (found.value, found.token) == ("mine", term.token)
        await eventually(lambda: observed.values == ["mine"])


async def test_the_leader_is_read_without_the_candidates(
    session: Session, other: Session, stack: AsyncExitStack
) -> None:
    await candidate(stack, session, "first")
    await leads(session, "first")
    for number in range(3):
        await candidate(stack, session, number)
    core, sizes = core_of(other), []
    get = core.transport.get

    async def counted(*args: Any) -> GetResult:
        result = await get(*args)
        sizes.append(len(result.kvs))
        return result

    core.transport.get = counted  # type: ignore[method-assign]
    assert (await leads(other, "first")).owner.session == f"{session.id:016x}"
    assert set(sizes) == {1}


# Losses


async def test_a_lost_leader_is_cancelled_and_can_neither_proclaim_nor_write(session: Session, other: Session) -> None:
    kept = []
    with pytest.raises(LockLost):
        async with Election("e", other).campaign("value") as term:
            kept.append(term)
            await revoke(session, other.id)
            await asyncio.sleep(10)
    for late in (kept[0].proclaim("late"), kept[0].grant.put("/late", "x"), kept[0].grant.progress()):
        with pytest.raises(FencedWriteRejected):
            await late
    assert kept[0].value == "value" and kept[0].grant.lost.is_set()


async def test_with_notify_a_lost_term_is_only_told(session: Session, other: Session) -> None:
    async with Election("e", other, on_loss="notify").campaign() as term:
        await revoke(session, other.id)
        await asyncio.wait_for(term.grant.lost.wait(), 5)
        with pytest.raises(FencedWriteRejected):
            await term.proclaim("late")
    assert await Election("e", session).leader() is None


async def test_a_term_that_is_over_proclaims_nothing(session: Session) -> None:
    async with Election("e", session).campaign("value") as term:
        pass
    with pytest.raises(FencedWriteRejected):
        await term.proclaim("late")
    assert await Election("e", session).leader() is None


async def test_observing_ends_with_its_session(session: Session, other: Session) -> None:
    observing = Election("e", other).observe()
    first = asyncio.ensure_future(anext(observing))
    await asyncio.sleep(0.1)
    await revoke(session, other.id)
    with pytest.raises(SessionLost):
        await asyncio.wait_for(first, 5)


async def test_observers_are_told_terms_and_losses_by_kind(session: Session, other: Session) -> None:
    told = Told()
    telemetry.observe(told)
    try:
        async with Election("e", session).campaign():
            pass
        async with Election("e", other, on_loss="notify").campaign() as term:
            await revoke(session, other.id)
            await asyncio.wait_for(term.grant.lost.wait(), 5)
            with pytest.raises(FencedWriteRejected):
                await term.proclaim(1)
    finally:
        telemetry.ignore(told)
    assert [one for one in told.what if one[1] == "election"] == [
        ("granted", "election", "e", False),
        ("released", "election", "e"),
        ("granted", "election", "e", False),
        ("lost", "election", "e"),
        ("rejected", "election", "e"),
    ]


async def test_metrics_count_terms_and_memberships_by_kind(session: Session) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def value(name: str, kind: str) -> float | None:
        return registry.get_sample_value(f"codomyrmex_{name}", {"kind": kind})

    try:
        assert value("losses_total", "election") == value("grants_total", "group") == 0
        async with Election("e", session).campaign(), Group("g", session).join():
            assert value("grants_total", "election") == value("grants_total", "group") == 1
            assert value("holding", "election") == value("holding", "group") == 1 and value("holding", "lock") == 0
            waiting = asyncio.create_task(Election("e", session).campaign(timeout=20).__aenter__())
            await eventually(lambda: value("waiting", "election") == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert value("releases_total", "election") == value("hold_seconds_count", "group") == 1
    finally:
        metrics.close()
