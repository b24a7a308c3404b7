"""The judge of reservations: good histories pass, and each kind of bad one is caught."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.documents.history import Event, earliest
from tests.chaos.documents.journal import Fact
from tests.chaos.documents.judge import report
from tests.chaos.reservations.calls import note
from tests.chaos.reservations.judge import judge
from tests.chaos.reservations.run import Run

SESSION, OWN, OTHER, DAY = 1, 70, 71, 90


def put(revision: int, key: str, value: object, lease: int = 0, created: int = 0, at: float = 0) -> Event:
    text = json.dumps(value).encode()
    return Event(revision, f"/n/v1/{key}", text, created or revision, lease, at or float(revision))


def gone(revision: int, key: str, at: float = 0) -> Event:
    return Event(revision, f"/n/v1/{key}", None, seen=at or float(revision))


def entry(revision: int, key: str, ask: str, own: int = 0, moved: int = 0) -> list[Event]:
    """An entry that joins on its session's lease and is put on its own in the next revision."""
    value = {"host": "h", "metadata": {"ask": ask}}
    joined = put(revision, key, value, SESSION)
    return [joined, put(moved or revision + 1, key, value, own, revision)] if own else [joined]


def write(revision: int, file: str, ask: str, token: int) -> Event:
    value = json.dumps({"ask": ask, "token": token}).encode()
    return Event(revision, f"/files/{file}", value, revision, 0, float(revision))


class Said:
    """Facts of calls, numbered."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    def call(
        self, what: str, ask: str, began: float, ended: float | None, error: str = "", text: str = "", **about: Any
    ) -> Said:
        number, common = len(self.facts), {"process": "p"}
        self.facts.append({**common, "fact": "call", "at": began, "number": number, "what": what, "ask": ask, **about})
        if ended is not None:
            answer = {"fact": "answer", "at": ended, "number": number, "error": error, "text": text}
            self.facts.append({**common, **answer, "documented": error != "KeyError"})
        return self

    def reserve(self, ask: str, began: float, ended: float, token: int, **about: Any) -> Said:
        wanted: dict[str, Any] = {"names": ["x"], "paths": [], "tree": "main", "ttl": 10, "note": note(ask, 0)}
        return self.call("reserve", ask, began, ended, **wanted | {"token": token, "shared": False} | about)


def judged(events: list[Event], said: Said, leases: dict[int, int] | None = None) -> str:
    session = put(1, f"lease/{SESSION:016x}", {}, SESSION)
    events = sorted([session, *events], key=lambda event: event.revision)
    return report(judge(Run("n", events, said.facts, leases)))


def kept(ask: str = "a", key: str = "lock/x/1-0", first: int = 2) -> list[Event]:
    return entry(first, key, ask, OWN)


def taken() -> Said:
    return Said().reserve("a", 1.5, 3.2, 2)


PATHS = {"names": [], "paths": ["src/"]}


def test_good_histories_pass() -> None:
    events = [*kept(), write(5, "lock/x", "a", 2), gone(6, "lock/x/1-0")]
    said = taken().call("write", "a", 4.5, 5.1).call("release", "a", 5.5, 6.2)
    events += [*entry(7, "lock/x/1-1", "b", OTHER), gone(20, "lock/x/1-1", 20)]
    said.reserve("b", 6.5, 8.2, 7, left="")
    events += entry(21, "lock/x/2-0", "c", 72)
    said.reserve("c", 20.5, 22.2, 21, left=f"it said {note('b', 0)}")
    said.call("renew", "b", 22.0, 22.1, "LockLost", "it expired 2 s ago; c holds now")
    said.call("list", "", 23.0, 23.1, tokens=[21])
    assert judged(events, said) == ""


def test_disjoint_paths_hold_together_and_readers_too() -> None:
    events = [*entry(2, "path/main/1-0", "a", OWN), *entry(4, "path/main/1-1", "b", OTHER)]
    events += [write(6, "path/main/src/a.py", "a", 2), write(7, "path/main/docs/b.md", "b", 4)]
    events += [*entry(8, "lock/y/1-2.r", "c", 72), *entry(10, "lock/y/1-3.r", "d", 73)]
    events += [write(12, "lock/y", "c", 8), write(13, "lock/y", "d", 10)]
    said = Said().reserve("a", 1.5, 3.2, 2, **PATHS).reserve("b", 3.5, 5.2, 4, names=[], paths=["docs/"])
    said.reserve("c", 7.5, 9.2, 8, names=["y"], shared=True).reserve("d", 9.5, 11.2, 10, names=["y"], shared=True)
    assert judged(events, said) == ""


def test_what_is_over_leaves_nothing() -> None:
    events = [
        *kept(),
        gone(14, "lock/x/1-0", 14),
        put(3, "left/lock/x", note("a", 0), DAY),
        gone(15, f"lease/{1:016x}"),
    ]
    assert judged(events, taken(), {DAY: 86_400}) == ""


JOINED = [*kept(), *entry(4, "lock/x/1-1", "b", OTHER)]
BOTH = taken().reserve("b", 3.5, 5.2, 4)
LOST = ("LockLost", "it expired")
BAD: dict[str, tuple[list[Event], Said, dict[int, int] | None]] = {
    "grant out of turn": (JOINED, BOTH, None),
    "grant without entry": (kept(), taken().reserve("b", 4, 5, 9, names=["y"]), None),
    "wrong token": (kept(), Said().reserve("a", 1.5, 3.2, 7), None),
    "no lease of its own": (entry(2, "lock/x/1-0", "a"), taken(), None),
    "write without hold": ([*kept(), gone(4, "lock/x/1-0"), write(5, "lock/x", "a", 2)], taken(), None),
    "write not covered": ([*kept(), write(5, "lock/y", "a", 2)], taken(), None),
    "token falls": ([*kept(), write(5, "lock/x", "a", 2), write(6, "lock/x", "a", 1)], taken(), None),
    "live handle refused": (kept(), taken().call("renew", "a", 4, 5, *LOST), None),
    "undocumented error": (kept(), taken().call("renew", "a", 4, 5, "KeyError"), None),
    "ended early": ([*kept(), gone(9, "lock/x/1-0", 9)], taken(), None),
    "ended late": ([*kept(), gone(9, "lock/x/1-0", 18)], taken(), None),
    "promise": (kept(), Said().reserve("a", 1.5, 3.2, 2, expires_in=10.5, asked=3.1), None),
    "left behind": (kept(), taken(), {}),
    "lease left behind": ([*kept(), gone(14, "lock/x/1-0", 14)], taken(), {SESSION: 6}),
    "left for ever": ([put(9, "left/lock/x", "", 0)], taken(), {}),
    "not listed": (kept(), taken().call("list", "", 4, 5, tokens=[]), None),
    "listed though gone": ([*kept(), gone(14, "lock/x/1-0", 14)], taken().call("list", "", 15, 16, tokens=[2]), None),
}


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_history_is_caught(kind: str) -> None:
    events, said, leases = BAD[kind]
    assert f"{kind}: " in judged(events, said, leases)


def test_overlapping_paths_that_both_write_are_caught() -> None:
    events = [*entry(2, "path/main/1-0", "a", OWN), *entry(4, "path/main/1-1", "b", OTHER)]
    events.append(write(6, "path/main/src/a.py", "b", 4))
    said = Said().reserve("a", 1.5, 3.2, 2, **PATHS).reserve("b", 3.5, 5.2, 4, names=[], paths=["src/a.py"])
    found = judged(events, said)
    assert "write without hold: " in found and "grant out of turn: " in found


def test_a_write_that_a_reader_shares_with_a_writer_is_caught() -> None:
    events = [*entry(2, "path/main/1-0.r", "a", OWN), *entry(4, "path/main/1-1", "b", OTHER)]
    said = Said().reserve("a", 1.5, 3.2, 2, **PATHS, shared=True).reserve("b", 3.5, 5.2, 4, **PATHS)
    assert "write without hold: " in judged([*events, write(6, "path/main/src/a.py", "b", 4)], said)


@pytest.mark.parametrize("error", ["", "FencedWriteRejected", "NotHeld"])
@pytest.mark.parametrize("what", ["renew", "write", "release"])
def test_an_expired_handle_must_be_refused_with_lock_lost(what: str, error: str) -> None:
    events = [*kept(), gone(14, "lock/x/1-0", 14)]
    assert "use of the dead: " in judged(events, taken().call(what, "a", 15, 16, error))
    assert "use of the dead: " not in judged(events, taken().call(what, "a", 15, 16, *LOST))


def test_a_refusal_must_say_that_it_expired() -> None:
    events = [*kept(), gone(14, "lock/x/1-0", 14)]
    assert "does not say" in judged(events, taken().call("renew", "a", 15, 16, "LockLost", "it is lost"))


def test_a_release_is_idempotent_and_a_renewal_after_it_is_refused() -> None:
    events = [*kept(), gone(5, "lock/x/1-0")]
    said = taken().call("release", "a", 4.5, 5.1)
    assert judged(events, said.call("release", "a", 6, 7)) == ""
    assert "use of the dead: " in judged(events, said.call("renew", "a", 6, 7))


NEXT = [*kept(), gone(14, "lock/x/1-0", 14), *entry(15, "lock/x/1-1", "b", OTHER)]


def test_a_note_that_is_not_told_or_told_wrongly_is_caught() -> None:
    assert "left not told: " in judged(NEXT, taken().reserve("b", 14.5, 16.5, 15))
    told = taken().call("release", "a", 13, 15).reserve("b", 14.5, 16.5, 15, left=note("a", 0))
    assert "left told wrongly: " in judged(NEXT, told)
    old = taken().call("renew", "a", 4, 4.5, note=note("a", 1)).reserve("b", 14.5, 16.5, 15, left=note("a", 0))
    assert "left not told: " in judged(NEXT, old)


def test_a_note_of_a_disjoint_path_is_told_wrongly() -> None:
    events = [*entry(2, "path/main/1-0", "a", OWN), gone(14, "path/main/1-0", 14)]
    events += entry(15, "path/main/1-1", "b", OTHER)
    said = Said().reserve("a", 1.5, 3.2, 2, **PATHS)
    said.reserve("b", 14.5, 16.5, 15, names=[], paths=["docs/"], left=note("a", 0))
    assert "left told wrongly: " in judged(events, said)


def test_a_note_that_stays_after_a_release_is_caught() -> None:
    events = [*kept(), gone(5, "lock/x/1-0"), put(6, "left/lock/x", "", DAY)]
    said = taken().call("release", "a", 4.5, 5.1)
    assert "left after release: " in judged(events, said, {DAY: 86_400})
    assert "left for ever: " in judged(events, said, {DAY: 90_000})


def test_a_forced_release_explains_an_early_end() -> None:
    events = [*kept(), gone(5, "lock/x/1-0")]
    assert judged(events, taken().call("force", "x", 4.5, 5.5)) == ""
    assert "ended early: " in judged(events, taken())


def test_a_killed_process_leaves_its_calls_open() -> None:
    events = [*kept(), gone(5, "lock/x/1-0"), *entry(6, "lock/x/1-1", "b", OTHER)]
    said = taken().call("release", "a", 4.5, None).reserve("b", 5.5, 7.5, 6, left=note("a", 0))
    assert judged(events, said) == ""


def test_an_event_was_seen_when_the_first_member_told_it() -> None:
    lags, leads = _events([9.0, 9.1, 9.2]), _events([1.0, 9.5])
    assert [event.seen for event in earliest([lags, leads])] == [1.0, 9.1, 9.2]


def _events(times: list[float]) -> list[Event]:
    return [Event(revision, "/k", b"", seen=seen) for revision, seen in enumerate(times, 2)]
