"""The judge written from the documents: a good history passes, and each kind of violation is caught."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.documents.evidence import Evidence
from tests.chaos.documents.history import Event
from tests.chaos.documents.journal import Fact
from tests.chaos.documents.judge import judge, report

ENTRY, CLAIM = "/n/v1/dead/q/entry/a", "/n/v1/dead/q/claim/a"
PLACE = {"ns": "n", "queue": "q", "id": "a"}
FIGURES = {"submitted": 2, "completed": 1, "failed": 1, "timed_out": 0, "cancelled": 0, "running": 0, "queued": 0}


def put(revision: int, key: str, value: object = None, lease: int = 0, created: int = 0) -> Event:
    return Event(revision, key, json.dumps(value).encode(), created or revision, lease, float(revision))


def gone(revision: int, key: str) -> Event:
    return Event(revision, key, None, seen=float(revision))


def record(state: str, *outcomes: str, **about: Any) -> dict[str, Any]:
    attempts = [{"number": n, "time": f"2026-{n}", "outcome": outcome} for n, outcome in enumerate(outcomes, 1)]
    return {"operation": "work", "args": {}, "state": state, "attempts": attempts, "next_attempt_at": "2026", **about}


def fact(at: float, said: str, process: str = "p", /, **about: Any) -> Fact:
    return {"at": at, "fact": said, "process": process, **about}


def run(at: float, number: int, token: int, process: str = "p") -> Fact:
    return fact(at, "run", process, **PLACE, run=number, number=number, token=token)


def ran(at: float, number: int, outcome: str = "ok", process: str = "p") -> Fact:
    return fact(at, "ran", process, run=number, outcome=outcome)


def life(outcome: str = "ok", state: str = "resolved") -> list[Event]:
    """An entry that is added, claimed and dealt with."""
    return [
        put(1, ENTRY, record("waiting")),
        put(2, CLAIM, "worker", lease=7),
        put(2, ENTRY, record("running", "running")),
        gone(3, CLAIM),
        put(3, ENTRY, record(state, outcome), lease=9 if state == "resolved" else 0),
    ]


ADDED = fact(1, "added", **PLACE)
HANDLED = fact(0, "handled", ns="n", queue="q", operations=["work"])
GOOD_RUN = [ADDED, HANDLED, run(2.1, 1, 2), ran(2.9, 1)]


def lock(at: float, hold: int, token: int, process: str = "p", **about: Any) -> Fact:
    facts = {"ns": "n", "kind": "lock", "name": "l", "shared": False, "permits": 1, "trust": 5.0, **about}
    return fact(at, "hold", process, hold=hold, token=token, **facts)


def held(at: float, hold: int, process: str = "p", **about: Any) -> Fact:
    return fact(at, "held", process, hold=hold, **{"error": "", "lost": False, "overrun": 0.0, **about})


def queue(kind: str = "lock", *suffixes: str) -> list[Event]:
    """Entries of the queue ``l`` that come one after another, at the revisions 1, 2, and so on."""
    return [put(n, f"/n/v1/{kind}/l/7-{n}{suffix}", {}, lease=7) for n, suffix in enumerate(suffixes or ("",), 1)]


def judged(events: list[Event], facts: list[Fact]) -> str:
    return report(judge(Evidence(events, facts, "2027")))


def test_a_good_history_passes() -> None:
    events = [*life(), *(put(e.revision + 9, e.key, lease=e.lease) for e in queue())]
    facts = [
        *GOOD_RUN,
        lock(10, 2, 10),
        held(11, 2),
        fact(12, "belief", what="locks", ns="n", prefix="", believed={"l": [10]}),
        fact(12, "belief", what="dead", ns="n", queue="q", believed={"a": "resolved"}),
        fact(13, "pool", figures=FIGURES, results={"ok": 1, "failed": 1}),
        fact(13, "call", what="get", took=1.0, limit=1.0),
        fact(13, "raised", what="get", error="EtcdUnavailable", documented=True),
        fact(13, "task", what="t", status="ok", wanted=["ok"]),
        fact(13, "spill file", lines=3, bytes=9, wanted=3),
        fact(14, "exit", of="p", code=0, stderr="a warning"),
    ]
    assert not judged(events, facts)


@pytest.mark.parametrize(
    "outcome, state, said",
    [("failed", "waiting", "failed"), ("parked", "parked", "park"), ("discarded", "resolved", "discard")],
)
def test_each_way_of_ending_passes(outcome: str, state: str, said: str) -> None:
    events = life(outcome, state)
    events[-1] = put(3, ENTRY, record(state, outcome, next_attempt_at="2028"))
    assert not judged(events, [ADDED, HANDLED, run(2.1, 1, 2), ran(2.9, 1, said)])


def test_a_replay_and_a_purge_that_were_asked_for_pass() -> None:
    again = [*life("failed", "parked"), put(4, ENTRY, record("waiting", "failed")), gone(5, ENTRY)]
    facts = [*GOOD_RUN[:3], ran(2.9, 1, "failed"), fact(4, "replay", **PLACE)]
    assert not judged(again, [*facts, fact(5, "purge", ns="n", queue="q", state="waiting")])
    assert "lost" in judged(again, facts)


WAITING, RUNNING = put(1, ENTRY, record("waiting")), life()[:3]
PARKED = life("failed", "parked")
DOUBLE = [put(1, ENTRY, record("waiting", dedup="d")), put(2, ENTRY + "2", record("waiting", dedup="d"))]
READERS = queue("lock", ".r", ".r")
PERMITS = [put(1, "/n/v1/semaphore/l/limit-2"), *(put(n, f"/n/v1/semaphore/l/7-{n}.2", {}, lease=7) for n in (2, 3))]
SPILLED = put(1, ENTRY, record("waiting", args={"args": ["t"], "kwargs": {}}))
CALM = fact(9, "calm", ns="n", queue="q", revision=9, clock="2027")
FAILED = fact(1, "failed", ns="n", queue="q", task="t")

CASES: list[tuple[str, str, list[Event], list[Fact]]] = [
    ("lost", "never was in etcd", [], [ADDED]),
    ("lost", "deleted at 2 while waiting", [WAITING, gone(2, ENTRY)], [ADDED]),
    ("unfinished", "nobody ran it", [WAITING], [HANDLED]),
    ("unfinished", "still running", RUNNING, [HANDLED, run(2.1, 1, 2)]),
    ("idle", "did nothing until 2027", [WAITING], [CALM]),
    ("idle", "in name only", RUNNING, [CALM, run(2.1, 1, 2)]),
    ("claim without runner", "nobody runs it", RUNNING, []),
    ("claim without runner", "nobody runs it", RUNNING, [run(2.1, 1, 2), ran(2.9, 1)]),
    ("attempts", "no claim of it", [WAITING], [run(2.1, 1, 2), ran(2.9, 1)]),
    ("attempts", "2 runs under one token", life(), [*GOOD_RUN, run(2.95, 2, 2), ran(2.99, 2)]),
    ("attempts", "its record says failed", PARKED, [ADDED, run(2.1, 1, 2), ran(2.9, 1)]),
    ("attempts", "nobody ran token 2", life(), []),
    ("doubled", "2 unresolved at revision 2", DOUBLE, []),
    ("returned", "was resolved and is waiting", [*life(), put(4, ENTRY, record("waiting", "ok"))], GOOD_RUN),
    ("returned", "has fewer", [*PARKED, put(4, ENTRY, record("parked"))], []),
    ("returned", "written again", [*life(), gone(4, ENTRY), put(5, ENTRY, record("waiting"))], GOOD_RUN),
    ("two at once", "ran it under token 2", life(), [*GOOD_RUN, run(2.5, 2, 2, "other")]),
    ("spilled", "never came", [], [FAILED]),
    ("spilled", "came 2 times", [SPILLED, put(2, ENTRY + "2", json.loads(SPILLED.value or b""))], [FAILED]),
    ("spilled", "belongs to /n/v1/dead/other", [SPILLED], [{**FAILED, "queue": "other"}]),
    ("held together", "held by p with token 1, o", queue("lock", "", ""), [lock(1, 1, 1), lock(2, 1, 2, "o")]),
    ("held together", "held by", READERS, [lock(1, 1, 1, shared=True), lock(2, 1, 2, "o")]),
    (
        "held together",
        "4 permits of 2",
        PERMITS,
        [lock(2, 1, 2, kind="semaphore", permits=2), lock(3, 1, 3, "o", kind="semaphore", permits=2)],
    ),
    ("out of turn", "whose turn never came", queue("lock", "", ""), [lock(2, 1, 2), held(3, 1)]),
    ("no trust", "granted without trust", queue(), [lock(1, 1, 1, trust=0.0), held(5, 1)]),
    ("no trust", "after trust had ended", queue(), [lock(1, 1, 1), held(5, 1, overrun=2.0)]),
    (
        "loss not told",
        "raised EtcdUnavailable",
        queue(),
        [lock(1, 1, 1), held(2, 1, lost=True, error="EtcdUnavailable")],
    ),
    ("loss not told", "raised nothing", queue(), [lock(1, 1, 1), held(2, 1, lost=True)]),
    (
        "follower",
        "l is None, believed [1]",
        [],
        [fact(1, "belief", what="locks", ns="n", prefix="", believed={"l": [1]})],
    ),
    ("follower", "l is [1], believed None", queue(), [fact(1, "belief", what="locks", ns="n", prefix="", believed={})]),
    ("follower", "a is waiting", [WAITING], [fact(1, "belief", what="dead", ns="n", queue="q", believed={})]),
    ("hung", "did not end", [], [fact(1, "hung", of="p", limit=9)]),
    ("traceback", "ended with 1", [], [fact(1, "exit", of="p", code=1, stderr="KeyError")]),
    ("traceback", "never retrieved", [], [fact(1, "exit", of="p", code=0, stderr="exception was never retrieved")]),
    ("undocumented error", "raised KeyError", [], [fact(1, "raised", what="get", error="KeyError", documented=False)]),
    ("too long", "took 9.0 s", [], [fact(9, "call", what="get", took=9.0, limit=1.0)]),
    ("never", "settled", [], [fact(1, "never", what="settled")]),
    ("stall", "stood still for 5.0 s", [], [fact(9, "stall", seconds=5.0)]),
    (
        "pool figures",
        "sum 2",
        [],
        [fact(1, "pool", figures={**FIGURES, "submitted": 3}, results={"ok": 1, "failed": 1})],
    ),
    ("pool figures", "results", [], [fact(1, "pool", figures=FIGURES, results={"ok": 2})]),
    ("pool task", "became failed", [], [fact(1, "task", what="t", status="failed", wanted=["ok"])]),
    ("spill grows", "96 lines", [], [fact(1, "spill file", lines=96, bytes=9, wanted=3)]),
]


@pytest.mark.parametrize("kind, text, events, facts", CASES)
def test_each_violation_is_caught(kind: str, text: str, events: list[Event], facts: list[Fact]) -> None:
    found = [violation for violation in judge(Evidence(events, facts, "2027")) if violation.kind == kind]
    assert any(text in violation.text for violation in found), judged(events, facts)


def test_a_process_that_was_stopped_is_excepted() -> None:
    stop = [fact(2.2, "stopped", of="p"), fact(9, "continued", of="p")]
    events = queue("lock", "", "")
    assert "held together" not in judged([*events, gone(3, events[0].key)], [lock(2, 1, 1), lock(4, 1, 2, "o"), *stop])
    assert not judged([], [fact(9, "stall", seconds=6.0), fact(9, "call", what="get", took=7.0, limit=1.0), *stop])


def test_a_killed_process_neither_holds_nor_runs_after_its_end() -> None:
    events = [*queue("lock", "", ""), gone(3, "/n/v1/lock/l/7-1")]
    kill = [fact(2, "killed", of="p"), fact(2, "exit", of="p", code=-9, stderr="")]
    assert not judged(events, [lock(1, 1, 1), lock(3, 1, 2, "o"), *kill])
    assert "claim without runner" in judged(RUNNING, [run(1.9, 1, 2), *kill])
