"""Watches over generated histories: batches, fragments of history, breaks, compaction; no event lost or told twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event, WatchMessage, WatchRequest
from codomyrmex.concurrency.etcd.watch_state import Changed, Notice, Refused, Started, Watch, WatchState

BATCH = 3  # revisions in one message to a watcher that lags; etcd's are 1,000


class Server:
    """One key's history, and a stream that serves it as etcd does: who lags behind gets batches under a header with the
    store's current revision."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.serving: dict[int, int] = {}  # watch id: the next revision to send
        self.inbox: list[WatchRequest | int] = []
        self.ids = 0

    def put(self) -> None:
        self.revision += 1

    def answer(self) -> WatchMessage | None:
        if not self.inbox:
            return None
        request = self.inbox.pop(0)
        self.ids += 1
        if isinstance(request, int):
            self.serving.pop(request, None)
            return WatchMessage(request, self.revision, canceled=True)
        if request.start and request.start <= self.compacted:
            return WatchMessage(-1, self.revision, created=True, canceled=True, compact_revision=self.compacted)
        self.serving[self.ids] = request.start or self.revision + 1
        return WatchMessage(self.ids, self.revision, created=True)

    def serve(self, chance: random.Random) -> WatchMessage | None:
        lagging = [watch for watch, at in self.serving.items() if at <= self.revision]
        if not lagging:
            return None
        watch = chance.choice(lagging)
        start = self.serving[watch]
        if start <= self.compacted:
            del self.serving[watch]
            return WatchMessage(watch, self.revision, canceled=True, compact_revision=self.compacted)
        last = min(self.revision, start + BATCH - 1)
        self.serving[watch] = last + 1
        repeated = max(self.compacted + 1, start - chance.choice([0, 0, 2]))  # etcd may repeat after a reconnect
        events = [Event(False, KV(b"k", b"", 2, number, 1, 0), None) for number in range(repeated, last + 1)]
        return WatchMessage(watch, self.revision, events=events)


class Follower:
    """A watcher that checks each notice against those before."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.problems: list[str] = []

    def told(self, notice: Notice) -> None:
        if isinstance(notice, Started):
            if notice.gap or self.at is None:
                self.at = notice.revision  # it reads what there is
            elif notice.revision != self.at:
                self.problems.append(f"resumed at {notice.revision}, not at {self.at}, and no gap was told")
        elif isinstance(notice, Changed):
            for event in notice.events:
                if self.at is None or event.kv.mod_revision != self.at + 1:
                    self.problems.append(f"told {event.kv.mod_revision} after {self.at}")
                self.at = event.kv.mod_revision
        elif isinstance(notice, Refused):
            self.problems.append("refused")


def run(seed: int, state: WatchState) -> tuple[list[str], Server, Follower]:
    chance = random.Random(seed)
    server, follower = Server(), Follower()
    watch = Watch(WatchRequest(b"k"))
    state.add(watch)

    def received(message: WatchMessage | None) -> None:
        if message and (told := state.received(message)):
            assert told[0] is watch
            follower.told(told[1])

    def step(kind: str) -> None:
        if kind == "put":
            server.put()
        elif kind == "serve":
            received(server.serve(chance))
        elif kind == "answer":
            received(server.answer())
        elif kind == "send":
            server.inbox.extend(state.to_send())
        elif kind == "compact":
            server.compacted = max(server.compacted, server.revision - chance.randrange(6))
        else:
            server.serving.clear()
            server.inbox.clear()
            state.broke()

    for _ in range(120):
        step(chance.choice(["put"] * 8 + ["serve"] * 3 + ["answer", "answer", "send", "send", "break", "compact"]))
    for _ in range(200):  # the faults are over
        for kind in ("send", "answer", "serve"):
            step(kind)
    if follower.at != server.revision:
        follower.problems.append(f"knows {follower.at} of {server.revision}")
    return follower.problems, server, follower


def test_over_any_history_nothing_is_lost_told_twice_or_passed_over_without_a_gap() -> None:
    for seed in range(1500):
        assert run(seed, WatchState())[0] == [], seed


class BelievesTheHeader(WatchState):
    """Takes the store's revision for its own, and so drops the batches that follow."""

    def received(self, message: WatchMessage) -> tuple[Watch, Notice] | None:
        told = super().received(message)
        if told and isinstance(told[1], Changed):
            told[0].revision = message.revision
        return told


class ResumesFromNow(WatchState):
    """Forgets at a break how far it was."""

    def broke(self) -> None:
        for watch in self._watches:
            watch.revision = 0
        super().broke()


class SilentAboutGaps(WatchState):
    def received(self, message: WatchMessage) -> tuple[Watch, Notice] | None:
        told = super().received(message)
        if told and isinstance(told[1], Started):
            return told[0], told[1]._replace(gap=False)
        return told


class TellsTwice(WatchState):
    """Tells whatever comes, also what came before."""

    def received(self, message: WatchMessage) -> tuple[Watch, Notice] | None:
        if message.events and (watch := self._by_id.get(message.watch_id)):
            watch.revision = message.events[0].kv.mod_revision - 1
        return super().received(message)


class ForgetsAfterABreak(WatchState):
    """Does not ask for its watches again."""

    def broke(self) -> None:
        super().broke()
        self._outbox.clear()


@pytest.mark.parametrize("broken", [BelievesTheHeader, ResumesFromNow, SilentAboutGaps, TellsTwice, ForgetsAfterABreak])
def test_the_checker_rejects_broken_variants(broken: Callable[[], WatchState]) -> None:
    assert any(run(seed, broken())[0] for seed in range(1500))


def test_refused_and_cancelled_creations_are_matched_in_order() -> None:
    """A refused creation carries no usable id, so answers are matched by order alone."""
    state = WatchState()
    one, two, three = (Watch(WatchRequest(key)) for key in (b"1", b"2", b"3"))
    for watch in (one, two, three):
        state.add(watch)
    assert [request.key for request in state.to_send() if isinstance(request, WatchRequest)] == [b"1", b"2", b"3"]
    state.remove(three)
    assert not state.has_requests  # etcd has not told its id yet
    told = state.received(WatchMessage(-1, 7, created=True, canceled=True, reason="permission denied"))
    assert told and told[0] is one and isinstance(told[1], Refused) and not one.active
    assert state.received(WatchMessage(5, 7, created=True)) == (two, Started(7, False, False))
    assert state.received(WatchMessage(6, 7, created=True)) is None
    assert list(state.to_send()) == [6]  # it is cancelled as soon as its id is known
    assert state.clear() == [two] and not two.active
