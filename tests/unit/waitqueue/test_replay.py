"""The past that a replay tells, against a model that knows each hold and each end because it made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd.transports.protocol import KV, Event
from codomyrmex.concurrency.keys import LOCK, PATH, Layout, is_in_tree, is_reader, queue_of
from codomyrmex.concurrency.models import ForcedRelease, HowEnded, PastHold, QueueKind
from codomyrmex.concurrency.waitqueue.replay import Replay
from codomyrmex.concurrency.waitqueue.scopes import Scopes

LAYOUT = Layout("fleet")
START = datetime(2026, 1, 1, tzinfo=UTC)
DELAYED, RESERVED, FOREIGN = 100, 200, 300  # added to a session's id: the lease that an entry was moved to
QUEUES: dict[bytes, QueueKind] = {LAYOUT.queue("a"): "lock", LAYOUT.queue("a", PATH): "path"}
PATHS = (["x"], ["x/"], ["x/y", "z"], ["z/"], [""])
STEPS = ("join", "join", "join", "join both", "release", "release", "record", "delay", "reserve", "force", "foreign")
STEPS += ("delay", "end", "end", "end reservation")
Choices = list[tuple[str, int, int, int]]


def at(revision: int) -> datetime:
    """The time of a revision, which etcd does not know and the model does."""
    return START + timedelta(seconds=revision)


@dataclass
class Hold:
    """A hold as the model knows it. ``told`` is True once its holder has recorded the time of its grant."""

    token: int
    granted: int
    ended: int = 0
    how: HowEnded = "held"
    told: bool = False


@dataclass
class World:
    """One lock, one tree of the same name, three sessions whose entries' keys are used again, and foreign clients."""

    revision: int = 1
    entries: dict[bytes, KV] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)  # sessions that have ended
    events: list[Event] = field(default_factory=list)
    holding: dict[bytes, Hold] = field(default_factory=dict)  # by the key of the entry
    holds: dict[bytes, list[Hold]] = field(default_factory=lambda: {queue: [] for queue in QUEUES})
    withdrawn: dict[bytes, list[int]] = field(default_factory=lambda: {queue: [] for queue in QUEUES})
    forced: dict[int, ForcedRelease] = field(default_factory=dict)  # by revision
    created: list[int] = field(default_factory=list)  # the revisions at which entries of this library joined
    pictures: dict[int, tuple[list[KV], set[int]]] = field(default_factory=dict)

    def step(self, what: str, session: int, slot: int, extra: int) -> None:
        self.revision += 1
        getattr(self, what.split()[0])(what, session, slot, extra)
        self._grant()
        self.pictures[self.revision] = list(self.entries.values()), set(self.over)

    def join(self, what: str, session: int, slot: int, extra: int) -> None:
        if session in self.over:
            return
        queue = list(QUEUES)[extra % 2]
        reader = b".r" if extra % 3 == 0 else b""
        # Group commit puts several entries of a session in one revision, not in the order of their keys.
        for one in (slot, 1 - slot) if what == "join both" else (slot,):
            key = LAYOUT.entry(queue, session, one, reader)
            if key not in self.entries:
                fields = Scopes.of(PATHS[extra % 5], bool(reader)).fields() if is_in_tree(key) else ""
                value = f'{{"host":"h","pid":1,"since":"{at(self.revision).isoformat()}"{fields}}}'.encode()
                self._put(KV(key, value, self.revision, self.revision, 1, session))
                self.created.append(self.revision)

    def foreign(self, what: str, session: int, slot: int, extra: int) -> None:
        """``etcdctl lock`` puts an entry without a value. A key without a lease is no entry."""
        key = list(QUEUES)[extra % 2] + b"%x" % (session + FOREIGN)
        if key in self.entries:
            self._remove(key, "released")  # or its lease ended: it has no key that would tell
        elif slot:
            self._put(KV(key, b"", self.revision, self.revision, 1, session + FOREIGN))
        else:
            stray = LAYOUT.queue("a") + b"stray"
            self.events.append(Event(False, KV(stray, b"", self.revision, self.revision, 1, 0), None))

    def release(self, what: str, session: int, slot: int, extra: int) -> None:
        if found := self._of(session, slot, lambda kv: session not in self.over or kv.lease > RESERVED):
            self._remove(found.key, "released")

    def record(self, what: str, session: int, slot: int, extra: int) -> None:
        if (found := self._of(session, slot)) and (hold := self.holding.get(found.key)):
            hold.told = True
            self._put_again(found, found.lease, waited=hold.granted - hold.token)

    def delay(self, what: str, session: int, slot: int, extra: int) -> None:
        """A holder with a ``lock_delay`` moves its entry to a lease that ends later than its session."""
        if (found := self._of(session, slot, lambda kv: kv.lease == session)) and found.key in self.holding:
            self._put_again(found, session + DELAYED)

    def reserve(self, what: str, session: int, slot: int, extra: int) -> None:
        """A holder moves its entry to the lease of a reservation, which has a key of its own."""
        if (found := self._of(session, slot, lambda kv: kv.lease == session)) and (hold := self.holding.get(found.key)):
            hold.told = True
            self._put_again(found, session + RESERVED, waited=hold.granted - hold.token, ttl=60)
            lease = LAYOUT.lease(session + RESERVED)
            self.events.append(
                Event(False, KV(lease, b"{}", self.revision, self.revision, 1, session + RESERVED), None)
            )

    def force(self, what: str, session: int, slot: int, extra: int) -> None:
        if (found := self._of(session, slot)) and (hold := self.holding.get(found.key)):
            forced = self.forced[self.revision] = ForcedRelease("a", hold.token, "because", "op", at(self.revision))
            self._remove(found.key, "forced")
            audit = LAYOUT.audit("a", PATH if is_in_tree(found.key) else LOCK)
            self.events.append(Event(False, KV(audit, forced.encode(), self.revision, self.revision, 1, 0), None))

    def end(self, what: str, session: int, slot: int, extra: int) -> None:
        """A lease ends: that of a session, then the delayed one; or that of a reservation."""
        if what == "end reservation":
            self._end_lease(session + RESERVED, "expired", told=True)
        elif session in self.over:
            self._end_lease(session + DELAYED, "lost", told=False)
        else:
            self.over.add(session)
            self._end_lease(session, "expired", told=True)

    def _end_lease(self, lease: int, how: HowEnded, *, told: bool) -> None:
        if told:
            self.events.append(Event(True, KV(LAYOUT.lease(lease), b"", 0, self.revision, 0, 0), None))
        for key in [kv.key for kv in self.entries.values() if kv.lease == lease]:
            self._remove(key, how)

    def _of(self, session: int, slot: int, such: Callable[[KV], bool] = lambda kv: True) -> KV | None:
        named = b"%016x-%x" % (session, slot)
        return next((kv for kv in self.entries.values() if named in kv.key and such(kv)), None)

    def _put(self, kv: KV) -> None:
        self.entries[kv.key] = kv
        self.events.append(Event(False, kv, None))

    def _put_again(self, kv: KV, lease: int, **fields: int) -> None:
        value = json.dumps({**json.loads(kv.value), **fields}).encode()
        self._put(kv._replace(value=value, lease=lease, version=kv.version + 1, mod_revision=self.revision))

    def _remove(self, key: bytes, how: HowEnded) -> None:
        gone = self.entries.pop(key)
        if hold := self.holding.pop(key, None):
            hold.ended, hold.how = self.revision, how
        else:
            self.withdrawn[queue_of(key)].append(gone.create_revision)
        self.events.append(Event(True, KV(key, b"", 0, self.revision, 0, 0), gone))

    def _grant(self) -> None:
        """Each entry ahead is looked at for each entry."""
        for queue, holds in self.holds.items():
            entries = [kv for kv in self.entries.values() if queue_of(kv.key) == queue and kv.lease]
            entries.sort(key=lambda kv: (kv.create_revision, kv.key))
            for number, kv in enumerate(entries):
                if kv.key not in self.holding and not any(_excludes(other, kv) for other in entries[:number]):
                    self.holding[kv.key] = Hold(kv.create_revision, self.revision)
                    holds.append(self.holding[kv.key])


def _excludes(one: KV, other: KV) -> bool:
    if is_in_tree(one.key) and not _overlap(_paths(one), _paths(other)):
        return False
    return not (is_reader(one.key) and is_reader(other.key))


def _paths(kv: KV) -> list[str]:
    return list(json.loads(kv.value)["paths"]) if kv.value else [""]


def _overlap(one: list[str], other: list[str]) -> bool:
    pairs = [(mine.rstrip("/"), theirs.rstrip("/")) for mine in one for theirs in other]
    return any(not a or not b or f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a, b in pairs)


CHOICES = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(1, 3), st.integers(0, 1), st.integers(0, 29)),
    min_size=20,
    max_size=60,
)


def world_of(choices: Choices) -> World:
    world = World()
    for choice in choices:
        world.step(*choice)
    return world


def expected(world: World, queue: bytes, begins_at: int = 1) -> list[tuple[object, ...]]:
    """Each hold as it must be told, if the history begins at a revision."""
    holds = [one for one in world.holds[queue] if not one.ended or one.ended > begins_at]
    granted_at = {one.granted: at(one.granted) for one in holds if _known(world, one, begins_at)}
    return [
        (
            one.token,
            one.granted if one.granted > begins_at or begins_at == 1 else None,
            at(one.granted) if _known(world, one, begins_at) else None,
            one.ended or None,
            one.how,
            at(one.ended) if one.how == "forced" else granted_at.get(one.ended),
            next((at(revision) for revision in world.created if revision > one.ended), None) if one.ended else None,
        )
        for one in holds
    ]


def _known(world: World, one: Hold, begins_at: int) -> bool:
    """True if the time of the grant can be told: it was recorded, or the entry held when it joined."""
    return one.told or (one.granted == one.token >= begins_at and one.token in world.created)


def told(holds: tuple[PastHold, ...]) -> list[tuple[object, ...]]:
    return [
        (
            one.token,
            one.granted_revision,
            one.granted_at,
            one.ended_revision,
            one.how,
            one.ended_at,
            one.ended_before,
        )
        for one in holds
    ]


def in_order(rows: list[tuple[object, ...]]) -> list[str]:
    """The rows as texts, for those of one token differ in some field or in none."""
    return sorted(" ".join(map(str, row)) for row in rows)


@settings(max_examples=100)
@example([("join", 1, 0, 2), ("delay", 1, 0, 0), ("end", 1, 0, 0), ("end", 1, 0, 0)])  # it is lost
@given(CHOICES)
def test_it_tells_every_hold_as_the_model_made_it(choices: Choices) -> None:
    world = world_of(choices)
    for queue, kind in QUEUES.items():
        replay = Replay(LAYOUT, "a", kind)
        replay.changed(world.events)
        holds = replay.holds(world.forced)
        assert in_order(told(holds)) == in_order(expected(world, queue))
        assert sorted(one.token for one in replay.waits()) == sorted(world.withdrawn[queue])
        assert [one.granted_revision for one in holds] == sorted(one.granted for one in world.holds[queue])
        for one in holds:
            forced = world.forced.get(one.ended_revision or 0) if one.how == "forced" else None
            assert (one.name, one.kind, one.forced) == ("a", kind, forced)


@settings(max_examples=100)
@given(CHOICES, st.data())
def test_after_a_compaction_it_tells_the_rest(choices: Choices, data: st.DataObject) -> None:
    """It comes before the reading, or while some has been read already."""
    world = world_of(choices)
    compacted = data.draw(st.integers(2, world.revision))
    read_before = data.draw(st.integers(1, compacted))
    entries, over = world.pictures[compacted]
    for queue, kind in QUEUES.items():
        replay = Replay(LAYOUT, "a", kind)
        replay.changed(event for event in world.events if event.kv.mod_revision <= read_before)
        replay.begin([kv for kv in entries if queue_of(kv.key) == queue], compacted, over)
        replay.changed(event for event in world.events if event.kv.mod_revision > compacted)
        assert replay.begins_at == compacted
        assert replay.first_mark == next((at(revision) for revision in world.created if revision > compacted), None)
        assert in_order(told(replay.holds(world.forced))) == in_order(expected(world, queue, compacted))


def test_the_times_of_a_hold_that_nobody_followed_are_bounded_by_the_next_entry_of_any_queue() -> None:
    world = world_of([("join", 1, 0, 2), ("release", 1, 0, 0), ("foreign", 1, 1, 0), ("join", 2, 0, 1)])
    replay = Replay(LAYOUT, "a")
    replay.changed(world.events)
    first, foreign = replay.holds({})
    assert (first.granted_at, first.ended_at, first.ended_before) == (at(2), None, at(5))
    assert first.waited == 0 and first.held is None
    assert foreign.owner.host == "" and foreign.granted_at is foreign.ended_before is None and foreign.waited == 0
