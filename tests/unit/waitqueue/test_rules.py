"""The queue's decisions on generated histories: nobody granted who must not be, all served in order, however late the
news.

The model is etcd's side: a set of entries, a limit and a revision. Each waiter sees it only through views that may be
stale, watches that may have been there before, and deletions that may come late, as the protocol allows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd.transports.protocol import KV, GetResult
from codomyrmex.concurrency.keys import PATH, Layout, is_reader, permits_of
from codomyrmex.concurrency.waitqueue.rules import (
    Decision,
    Granted,
    Overlap,
    Permits,
    Predecessor,
    Rule,
    View,
    WaitFor,
    exclusive,
    holders,
    holding,
    shared,
)
from codomyrmex.concurrency.waitqueue.scopes import Scopes, scopes_in
from codomyrmex.concurrency.waitqueue.turn import Action, Turn
from codomyrmex.concurrency.waitqueue.view import whole

TREE = Layout("fleet").queue("main", PATH)
LIMIT = b"/fleet/v1/semaphore/q/limit-%d"


class Queue:
    """A queue in etcd, as it was at every revision."""

    def __init__(self, seed: int, limit: int | None) -> None:
        self.random = random.Random(seed)
        self.entries: list[Predecessor] = []
        self.limit = limit
        self.lossy = seed % 2 == 0  # then waiters also look without a reason; else they must get along without
        self.history: list[tuple[list[Predecessor], int | None]] = [([], limit)]
        self.deleted: list[tuple[bytes, int]] = []
        self.markers: list[Predecessor] = []

    @property
    def revision(self) -> int:
        return len(self.history) - 1

    def happened(self) -> None:
        self.history.append((list(self.entries), self.limit))

    def join(self, rule: Rule) -> Predecessor:
        """Keys are used again as soon as they are free, as key slots are."""
        taken = {entry.key for entry in self.entries}
        queue = TREE if rule.fields else b"q/"
        keys = [queue + b"%d" % n + rule.key_suffix for n in range(12)]
        key = self.random.choice([key for key in keys if key not in taken])
        entry = Predecessor(key, self.revision + 1, f"{{{rule.fields[1:]}}}".encode())
        self.entries.append(entry)
        self.happened()
        return entry

    def remove(self, entry: Predecessor) -> None:
        self.entries.remove(entry)
        self.happened()
        self.deleted.append((entry.key, self.revision))

    def release(self, entry: Predecessor) -> None:
        """A writer that held alone says so in the transaction of its release; not each of them does."""
        if not is_reader(entry.key) and self.random.random() < 0.7:
            self.markers.append(entry)
        self.remove(entry)

    def resize(self, limit: int) -> None:
        assert self.limit is not None
        former, self.limit = self.limit, limit
        self.happened()
        self.deleted.append((LIMIT % former, self.revision))


class Waiter:
    """One entry and its turn, driven by a scheduler that delays what it likes."""

    def __init__(self, queue: Queue, rule: Rule) -> None:
        self.queue = queue
        self.rule = rule
        entries, limit = queue.history[-1]
        self.entry = queue.join(rule)
        self.turn = Turn(rule)
        self.watched_from: int | None = None
        self.granted = False
        seen = entries if rule.needs_all else entries[-1:]
        self.apply(self.turn.seen(View(queue.revision, seen, len(entries), limit)))

    def apply(self, action: Action) -> None:
        self.granted = self.granted or action is Action.GRANT
        self.action = action
        if action is Action.WATCH:
            self.watched_from = None
            self.told: set[int] = set()

    def steps(self) -> list[Callable[[], None]]:
        """The events that may come next: notices come in order, but views at any time."""
        if self.granted or self.action is Action.FAIL:
            return []
        if self.watched_from is None:
            return [self.watch] if self.action is Action.WATCH else [self.look]
        steps: list[Callable[[], None]] = [self.look] if self.action is Action.LOOK else []
        # Any marker of a key may be the last one read, those of its earlier lives too.
        markers = [marked for marked in self.queue.markers if marked.key == self.turn.key]
        steps += [partial(self.hear, marked.create_revision) for marked in markers[-2:]]
        for key, revision in self.queue.deleted:
            if revision > self.watched_from and revision not in self.told and self.turn.key in (b"", key):
                return [*steps, partial(self.tell, key, revision)]
        return steps or ([self.miss] if self.queue.lossy and self.queue.random.random() < 0.05 else [])

    def watch(self) -> None:
        """From now, or one that was there before and may still have to tell of a key's earlier lives."""
        lingering = self.queue.random.random() < 0.5
        self.watched_from = self.queue.random.randint(0, self.queue.revision) if lingering else self.queue.revision
        self.apply(self.turn.watching(self.watched_from))

    def look(self) -> None:
        """A view at any revision from the one needed to now."""
        revision = self.queue.random.randint(max(self.turn.needed, self.entry.create_revision), self.queue.revision)
        entries, limit = self.queue.history[revision]
        predecessors = [e for e in entries if e.create_revision < self.entry.create_revision]
        if self.rule.needs_all:
            self.apply(self.turn.seen(View(revision, predecessors, len(predecessors), limit)))
        else:
            self.apply(self.turn.seen(View(revision, predecessors[-1:], min(2, len(predecessors)), limit)))

    def tell(self, key: bytes, revision: int) -> None:
        self.told.add(revision)
        action = self.turn.deleted(key, revision)
        if action is not Action.WAIT or self.action is not Action.LOOK:  # a look that is asked for is still made
            self.apply(action)

    def hear(self, token: int) -> None:
        if self.turn.handed_off(b"%d" % token) is Action.GRANT:
            self.apply(Action.GRANT)

    def miss(self) -> None:
        self.apply(self.turn.missed())


def violations(seed: int, rules: Sequence[Rule], limit: int | None = None, rounds: int = 300) -> str:
    """Play a random history; says what went wrong, or nothing."""
    queue = Queue(seed, limit)
    living: list[Waiter] = []
    largest = limit
    for step in range(rounds):
        joining = step < rounds // 2
        choices: list[Callable[[], None]] = [move for waiter in living for move in waiter.steps()]
        if joining and len(living) < 8:
            choices.append(lambda: living.append(Waiter(queue, queue.random.choice(rules))))
        leaving = [w for w in living if w.granted or (joining and queue.random.random() < 0.1)]
        if leaving:
            waiter = queue.random.choice(leaving)

            def leave(waiter: Waiter = waiter) -> None:
                living.remove(waiter)
                if waiter.granted:
                    queue.release(waiter.entry)
                else:
                    queue.remove(waiter.entry)

            choices.append(leave)
        if limit is not None and joining and queue.random.random() < 0.05:
            choices.append(lambda: queue.resize(queue.random.randint(4, 8)))
        if choices:
            queue.random.choice(choices)()
        largest = max(largest or 0, queue.limit) if queue.limit is not None else None
        if wrong := _wrong(queue, living, largest):
            return wrong
    for _ in range(5000):
        if not living:
            return ""
        moves = [move for waiter in living for move in waiter.steps()]
        if moves:
            queue.random.choice(moves)()
        if wrong := _wrong(queue, living, largest):
            return wrong
        done = [w for w in living if w.granted]
        if done and queue.random.random() < 0.5:
            living.remove(done[0])
            queue.release(done[0].entry)
    return "a waiter waits for ever"


def _wrong(queue: Queue, living: list[Waiter], largest: int | None) -> str:
    granted = {waiter.entry for waiter in living if waiter.granted}
    if any(entry.key.startswith(TREE) for entry in queue.entries):
        return "granted out of turn" if granted - set(first_of_all(queue.entries)) else ""
    if largest is not None:
        if sum(permits_of(entry.key) for entry in granted) > largest:
            return "more permits than the limit"
    else:
        writers = [entry for entry in granted if not is_reader(entry.key)]
        if writers and len(granted) > 1:
            return "a writer is not alone"
    if len(granted) > 0 and granted - set(queue.entries[: holding([e.key for e in queue.entries], largest)]):
        return "granted out of turn"
    return ""


@given(st.integers(0, 2**32))
def test_never_two_writers_granted_and_all_served_in_order(seed: int) -> None:
    assert violations(seed, [exclusive]) == ""


@given(st.integers(0, 2**32))
def test_readers_enter_together_and_none_passes_a_writer(seed: int) -> None:
    assert violations(seed, [exclusive, shared, shared]) == ""


@given(st.integers(0, 2**32))
def test_never_more_permits_than_the_limit_and_all_served_in_order(seed: int) -> None:
    assert violations(seed, [Permits(1), Permits(2), Permits(4)], limit=5) == ""


# Paths

PATHS = [["a"], ["a/"], ["a/b", "c"], ["a/b/"], ["c/d/"], ["c"], ["e"], [""]]
SCOPES = st.builds(Scopes.of, st.sampled_from(PATHS), st.booleans())
OVERLAPS = [Overlap(Scopes.of(paths, shared)) for paths in PATHS for shared in (False, True)]


def first_of_all(entries: Sequence[Predecessor]) -> list[Predecessor]:
    """The entries that overlap with none ahead of them; each path is compared with each."""
    return [one for n, one in enumerate(entries) if not any(_overlap(one, other) for other in entries[:n])]


def _overlap(one: Predecessor, other: Predecessor) -> bool:
    mine, theirs = scopes_in(one.value), scopes_in(other.value)
    pairs = [(a.rstrip("/"), b.rstrip("/")) for a in mine.paths for b in theirs.paths]
    return not (mine.shared and theirs.shared) and any(
        not a or not b or f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a, b in pairs
    )


def entries_of(several: Sequence[Scopes]) -> list[Predecessor]:
    return [
        Predecessor(TREE + b"%d" % n, n + 1, f"{{{scopes.fields()[1:]}}}".encode()) for n, scopes in enumerate(several)
    ]


@given(st.integers(0, 2**32))
def test_never_two_that_overlap_granted_and_all_served_in_order(seed: int) -> None:
    assert violations(seed, OVERLAPS) == ""


@given(st.lists(SCOPES, max_size=8))
def test_an_entry_of_a_tree_holds_when_no_entry_ahead_overlaps(several: list[Scopes]) -> None:
    queue = entries_of(several)
    held = holders(queue)
    assert [one for one, holds in zip(queue, held, strict=True) if holds] == first_of_all(queue)
    for number, scopes in enumerate(several):
        decision = Overlap(scopes)(View(9, queue[:number], number))
        assert decision == (Granted() if held[number] else WaitFor(b""))


@given(st.lists(SCOPES, max_size=8), st.lists(SCOPES, max_size=3), SCOPES, st.data())
def test_a_grant_of_paths_stays_right(
    ahead: list[Scopes], later: list[Scopes], own: Scopes, data: st.DataObject
) -> None:
    """Entries that leave from ahead and entries that join afterwards take no grant away."""
    queue, token = entries_of([*ahead, own, *later]), len(ahead) + 1
    rule = Overlap(own)
    left = data.draw(st.sets(st.sampled_from(queue[:token] + queue[token:]))) - {queue[token - 1]}
    kvs = [KV(key, value, revision, revision, 1, 7) for key, revision, value in queue]
    before = whole(GetResult(kvs, len(kvs), 20), token)
    after = whole(GetResult([kv for one, kv in zip(queue, kvs, strict=True) if one not in left], 0, 21), token)
    if rule(before) == Granted():
        assert rule(after) == Granted()
    assert rule(after) == (
        Granted() if not any(_overlap(queue[token - 1], one) for one in after.entries) else WaitFor(b"")
    )


class _Broken:
    key_suffix = b""
    fields = ""
    needs_all = False

    def __init__(
        self, decide: Callable[[View], Decision], key_suffix: bytes = b"", needs_all: bool = False, fields: str = ""
    ) -> None:
        self.decide, self.key_suffix, self.needs_all, self.fields = decide, key_suffix, needs_all, fields

    def __call__(self, view: View) -> Decision:
        return self.decide(view)


def _second_may_enter(view: View) -> Decision:
    return exclusive(view) if view.total > 1 else Granted()


def _reader_passes_one_writer(view: View) -> Decision:
    writers = [entry for entry in view.entries if not is_reader(entry.key)]
    return WaitFor(writers[-1].key) if len(writers) > 1 else Granted()


def _one_permit_too_many(view: View) -> Decision:
    taken = sum(permits_of(entry.key) for entry in view.entries)
    return Granted() if taken + 2 <= (view.limit or 0) + 1 else WaitFor(b"")


def _small_ones_first(view: View) -> Decision:
    largest = max((permits_of(entry.key) for entry in view.entries), default=0)
    return Granted() if largest < 4 and len(view.entries) < 3 else WaitFor(b"")


def _equal_paths_only(view: View) -> Decision:
    taken = {path for entry in view.entries for path in scopes_in(entry.value).points}
    return WaitFor(b"") if "a" in taken else Granted()


def _nothing_below(view: View) -> Decision:
    taken = any({"a", ""} & scopes_in(entry.value).points for entry in view.entries)
    return WaitFor(b"") if taken else Granted()


def _nothing_above(view: View) -> Decision:
    points = {path for entry in view.entries for path in scopes_in(entry.value).points}
    return WaitFor(b"") if any(path == "a" or path.startswith("a/") for path in points) else Granted()


def _shared_passes_all(view: View) -> Decision:
    return Granted()


def _only_the_nearest_counts(view: View) -> Decision:
    return Overlap(Scopes.of(["a/"]))(view._replace(entries=view.entries[-1:]))


_A = Scopes.of(["a/"]).fields()
_A_SHARED = Scopes.of(["a/"], True).fields()


@pytest.mark.parametrize(
    ("broken", "others", "limit"),
    [
        (_Broken(_equal_paths_only, b"", True, _A), OVERLAPS, None),
        (_Broken(_nothing_below, b"", True, _A), OVERLAPS, None),
        (_Broken(_nothing_above, b"", True, _A), OVERLAPS, None),
        (_Broken(_only_the_nearest_counts, b"", True, _A), OVERLAPS, None),
        (_Broken(_shared_passes_all, b".r", True, _A_SHARED), OVERLAPS, None),
        (_Broken(_second_may_enter), [], None),
        (_Broken(_reader_passes_one_writer, b".r", True), [exclusive], None),
        (_Broken(_one_permit_too_many, b".2", True), [Permits(1)], 5),
        (_Broken(_small_ones_first, b".2", True), [Permits(4), Permits(2)], 5),
    ],
)
def test_the_checker_catches_a_broken_rule(broken: Rule, others: list[Rule], limit: int | None) -> None:
    assert any(violations(seed, [broken, *others], limit) for seed in range(50))


class _Forgetful(Turn):
    """Believes deletions from before its view."""

    __slots__ = ()

    def deleted(self, key: bytes, revision: int) -> Action:
        return Action.GRANT if self._view.total == 1 else super().deleted(key, revision)


def test_the_checker_catches_a_turn_that_believes_old_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Turn", _Forgetful)
    assert any(violations(seed, [exclusive]) for seed in range(200))


class _Credulous(Turn):
    """Takes any release marker of the key that it watches for its predecessor's."""

    __slots__ = ()

    def handed_off(self, value: bytes) -> Action:
        return Action.GRANT


def test_the_checker_catches_a_turn_that_believes_an_earlier_lifes_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Turn", _Credulous)
    assert any(violations(seed, [exclusive]) for seed in range(200))


def test_the_checker_catches_a_marker_of_one_that_did_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "remove", _marks_any_removal)
    assert any(violations(seed, [exclusive]) for seed in range(200))


def _marks_any_removal(queue: Queue, entry: Predecessor) -> None:
    queue.entries.remove(entry)
    queue.happened()
    queue.deleted.append((entry.key, queue.revision))
    queue.markers.append(entry)


def test_a_view_older_than_the_watch_is_read_again() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Predecessor(b"a", 1)], 1)) is Action.WATCH
    assert turn.watching(7) is Action.LOOK and turn.needed == 7
    assert turn.seen(View(7, [Predecessor(b"a", 1)], 1)) is Action.WAIT
    assert turn.deleted(b"a", 9) is Action.GRANT


def test_the_end_of_a_keys_earlier_life_means_nothing() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Predecessor(b"a", 4)], 1)) is Action.WATCH
    assert turn.watching(1) is Action.WAIT
    assert turn.deleted(b"a", 3) is Action.WAIT and turn.deleted(b"a", 5) is Action.WAIT
    assert turn.deleted(b"a", 6) is Action.GRANT


def test_keys_that_end_at_one_revision_all_count() -> None:
    turn = Turn(Permits(3))
    predecessors = [Predecessor(b"/f/v1/semaphore/s/%016x-0.2" % lease, lease) for lease in (1, 2, 3)]
    assert turn.seen(View(5, predecessors, 3, 6)) is Action.WATCH
    assert turn.watching(5) is Action.WAIT
    assert turn.deleted(predecessors[0].key, 6) is Action.WAIT
    assert turn.deleted(predecessors[0].key, 6) is Action.WAIT
    assert turn.deleted(predecessors[1].key, 6) is Action.GRANT
    assert turn.deleted(predecessors[2].key, 5) is Action.WAIT


def test_the_end_of_a_predecessor_in_mid_queue_grants_nothing() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Predecessor(b"b", 2)], 2)) is Action.WATCH
    assert turn.watching(5) is Action.WAIT
    assert turn.deleted(b"b", 6) is Action.LOOK and turn.needed == 6


def test_the_predecessors_release_marker_is_the_grant_however_many_were_ahead() -> None:
    turn = Turn(exclusive)
    assert turn.seen(View(5, [Predecessor(b"b", 2)], 7)) is Action.WATCH and not turn.sees_all
    for other in (b"1", b"", b"02", b"2 ", b"9" * 5000, b"\xff"):
        assert turn.handed_off(other) is Action.WAIT
    assert turn.handed_off(b"2") is Action.GRANT


def test_a_changed_limit_is_read_before_anything_else_counts() -> None:
    turn = Turn(Permits(1))
    assert (
        turn.seen(View(5, [Predecessor(b"q/a.1", 1), Predecessor(b"q/b.1", 2)], 2, 2)) is Action.WATCH
        and turn.key == b""
    )
    assert turn.watching(5) is Action.WAIT
    assert turn.deleted(LIMIT % 2, 6) is Action.LOOK
    assert turn.deleted(b"q/a.1", 7) is Action.LOOK and turn.needed == 7
    assert turn.seen(View(7, [Predecessor(b"q/b.1", 2)], 1, 1)) is Action.WAIT
    assert turn.deleted(b"q/b.1", 8) is Action.GRANT


@pytest.mark.parametrize(
    ("keys", "limit", "held"),
    [
        ([], None, 0),
        ([b"q/a", b"q/b"], None, 1),
        ([b"q/a.r", b"q/b.r", b"q/c", b"q/d.r"], None, 2),
        ([b"q/a", b"q/b.r"], None, 1),
        ([b"q/a.2", b"q/b.3", b"q/c.1"], 5, 2),
        ([b"q/a.2", b"q/b.4", b"q/c.1"], 5, 1),
        ([b"q/a.2", b"q/b.1"], 5, 2),
    ],
)
def test_who_of_a_queue_holds(keys: list[bytes], limit: int | None, held: int) -> None:
    assert holding(keys, limit) == held
