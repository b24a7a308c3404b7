"""The entries that a session knows, over generated histories: none that lives is missing, none that is told gone stays.

etcd's side is a set of entries and a revision. Deletions are told late but in order, readings arrive late and in any
order, and now and then a gap hides deletions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.waitqueue.known import Known
from codomyrmex.concurrency.waitqueue.rules import Predecessor, View


def problem(seed: int, kind: type[Known]) -> str:
    """Play a random history; the first thing that went wrong, or nothing."""
    chance = random.Random(seed)
    known, revision, told = kind(), 1, 0
    living: dict[bytes, Predecessor] = {}
    deletions: list[tuple[bytes, int]] = []
    readings: list[tuple[list[Predecessor], int, int]] = []
    known.restart(1)
    for _ in range(80):
        step = chance.choice(["join", "join", "leave", "tell", "tell", "send", "send", "arrive", "arrive", "gap"])
        if step == "join" and (free := [b"%d" % n for n in range(6) if b"%d" % n not in living]):
            revision += 1
            key = chance.choice(free)
            living[key] = Predecessor(key, revision)
        elif step == "leave" and living:
            revision += 1
            key = chance.choice(list(living))
            del living[key]
            deletions.append((key, revision))
        elif step == "tell" and told < len(deletions):
            known.deleted(*deletions[told])
            told += 1
        elif step == "send":
            after = known.revision
            readings.append(([one for one in living.values() if one.create_revision > after], revision, after))
        elif step == "gap" and chance.random() < 0.3:
            told = len(deletions)
            known.restart(revision)
        elif step == "arrive" and readings:
            entries, read_at, after = readings.pop(chance.randrange(len(readings)))
            known.read(entries, read_at, after)
            if known.revision >= read_at:
                view = known.view(read_at + 1, 0).entries
                if any(one not in view for one in living.values() if one.create_revision <= read_at):
                    return "an entry that lives is missing"
                untold = deletions[told:]
                for one in view:
                    late = any(one.key == key and when > one.create_revision for key, when in untold)
                    if living.get(one.key) != one and not late:
                        return "an entry that was told gone is still there"
    return ""


@given(st.integers(0, 2**32))
def test_no_living_entry_is_missing_and_none_told_gone_stays(seed: int) -> None:
    assert problem(seed, Known) == ""


class TakesALifeForAnother(Known):
    """Believes the deletion of an earlier life of a key."""

    def deleted(self, key: bytes, revision: int) -> None:
        self._entries.pop(key, None)
        super().deleted(key, revision)


class ForgetsDeletions(Known):
    """Takes an entry from a late reading although its deletion was told."""

    def add(self, entry: Predecessor) -> None:
        self._entries[entry.key] = entry


class BelievesEveryReading(Known):
    """Takes readings from before a gap, and partial ones that leave out what it does not know."""

    def read(self, entries: Iterable[Predecessor], revision: int, after: int = 0) -> None:
        for entry in entries:
            self.add(entry)
        self.revision = max(self.revision, revision)


@pytest.mark.parametrize("broken", [TakesALifeForAnother, ForgetsDeletions, BelievesEveryReading])
def test_the_checker_rejects_broken_variants(broken: type[Known]) -> None:
    assert any(problem(seed, broken) for seed in range(300))


def test_an_own_entry_that_is_gone_is_known_gone_before_it_is_told() -> None:
    known = Known()
    known.restart(1)
    known.read([Predecessor(b"a", 2), Predecessor(b"b", 3)], 5)
    known.removed(b"a", 1)
    assert len(known.view(9, 5).entries) == 2
    known.removed(b"a", 2)
    assert known.view(9, 5) == View(5, [Predecessor(b"b", 3)], 1)
    assert known.view(3, 5).total == 0


def test_a_view_keeps_a_later_life_of_a_key() -> None:
    view = View(5, [Predecessor(b"a", 8)], 1)
    assert view.without(b"a", 7).total == 1 and view.without(b"a", 9).total == 0
