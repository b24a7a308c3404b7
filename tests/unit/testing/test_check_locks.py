"""The checker accepts good histories and names the rule that a bad one breaks."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency.testing import BelievedHold, Change, check_locks


def joined(token: int, shared: bool = False, lock: str = "x") -> Change:
    return Change(token, "joined", lock, token, shared)


def left(revision: int, token: int) -> Change:
    return Change(revision, "left", "x", token)


def wrote(revision: int, token: int | None) -> Change:
    return Change(revision, "wrote", "x", token)


def held(revision: int, token: int) -> Change:
    return Change(revision, "held", "x", token)


GOOD = {
    "nothing": [],
    "one after the other": [joined(1), wrote(2, 1), joined(3), left(4, 1), held(5, 3), wrote(6, 3), left(7, 3)],
    "a write and a release in one transaction": [joined(1), left(5, 1), wrote(5, 1)],
    "readers together, in any order": [joined(1, True), joined(2, True), wrote(3, 2), wrote(4, 1)],
    "two locks": [joined(1), joined(2, lock="y"), wrote(3, 1), Change(4, "wrote", "y", 2)],
    "a write without a token": [joined(1), wrote(2, None)],
}
BAD = {
    "written after the release": ("fenced writes", [joined(1), left(2, 1), wrote(3, 1)]),
    "written before the turn": ("fenced writes", [joined(1), joined(2), wrote(3, 2)]),
    "written by an expired holder beside the next": (
        "fenced writes",
        [joined(1), joined(2), left(3, 1), wrote(4, 2), wrote(5, 1)],
    ),
    "written with no holder": ("fenced writes", [joined(1), left(2, 1), wrote(3, None)]),
    "written by a reader after a writer": (
        "fenced writes",
        [joined(1, True), joined(2), joined(3, True), wrote(4, 3)],
    ),
    "held beside the holder": ("mutual exclusion", [joined(1), joined(2), held(3, 2)]),
    "a writer held beside a reader": ("mutual exclusion", [joined(1, True), joined(2), held(3, 2)]),
    "a token that falls": ("rising tokens", [joined(5), Change(6, "joined", "x", 4)]),
    "a lower token wrote later": ("rising tokens", [joined(1), joined(2), left(3, 1), wrote(4, 2), wrote(5, 1)]),
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_good_history_has_no_violation(history: list[Change]) -> None:
    verdict = check_locks(history)
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize(("rule", "history"), BAD.values(), ids=BAD)
def test_a_bad_history_breaks_the_rule(rule: str, history: list[Change]) -> None:
    verdict = check_locks(history)
    assert not verdict.ok and rule in [violation.rule for violation in verdict.violations]


def test_the_order_of_the_list_does_not_matter() -> None:
    history = GOOD["one after the other"]
    assert check_locks(reversed(history)) == check_locks(history)


def test_a_verdict_counts_and_tells() -> None:
    verdict = check_locks([joined(1), left(2, 1), wrote(3, 1)])
    assert (verdict.entries, verdict.writes) == (1, 1)
    assert str(verdict) == (
        "1 entries and 1 writes were judged\nfenced writes: 'x': at revision 3, token 1 wrote while none held"
    )


def test_believed_holds_must_not_overlap() -> None:
    first, second = BelievedHold("x", 1, 0.0, 2.0), BelievedHold("x", 2, 1.0, 3.0)
    (violation,) = check_locks([], [second, first]).violations
    assert violation.rule == "mutual exclusion" and "tokens 1 and 2 were both held at 1.000" in violation.text


def test_believed_holds_that_may_overlap() -> None:
    readers = [BelievedHold("x", 1, 0.0, 2.0, shared=True), BelievedHold("x", 2, 1.0, 3.0, shared=True)]
    assert check_locks([], [*readers, BelievedHold("y", 3, 0.0, 9.0), BelievedHold("x", 4, 3.0, 4.0)]).ok
