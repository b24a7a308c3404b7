"""The judge of the chaos runs must reject every history that is known to be bad."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.checker import (
    Change,
    Hold,
    Step,
    crowds,
    dead_letter_violations,
    overlapping_paths,
    overlaps,
    path_violations,
    semaphore_violations,
    violations,
)

GOOD = [
    Change(1, "joined", 1, b"a"),
    Change(2, "joined", 2, b"b"),
    Change(3, "wrote", 1),
    Change(4, "left", 1, b"a"),
    Change(5, "wrote", 2),
    Change(6, "left", 2, b"b"),
]


def test_a_good_history_passes() -> None:
    assert violations(GOOD) == []
    assert overlaps([Hold(1, 0.0, 1.0), Hold(2, 1.0, 2.0)]) == []


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([*GOOD[:2], Change(3, "wrote", 2), *GOOD[3:]], "but 1 held"),
        ([*GOOD[:4], Change(5, "wrote", 1), *GOOD[5:]], "but 2 held"),
        ([*GOOD, Change(7, "wrote", 2)], "but None held"),
        ([*GOOD, Change(7, "joined", 1, b"c"), Change(8, "wrote", 1), Change(9, "left", 1, b"c")], "token 1 after 2"),
        (GOOD[:-1], "token 2 stayed behind"),
        ([GOOD[0], Change(1, "joined", 1, b"b"), GOOD[3], Change(6, "left", 1, b"b")], "share the token 1"),
    ],
)
def test_a_bad_history_is_rejected(history: list[Change], verdict: str) -> None:
    assert any(verdict in text for text in violations(history))


def test_holds_that_overlap_are_rejected() -> None:
    assert len(overlaps([Hold(2, 0.9, 2.0), Hold(1, 0.0, 1.0)])) == 1


# Semaphores

CROWD = [
    Change(1, "limit", 0, permits=3),
    Change(2, "joined", 2, b"a", 2),
    Change(3, "joined", 3, b"b", 2),
    Change(4, "joined", 4, b"c", 1),
    Change(5, "wrote", 2),
    Change(6, "left", 2, b"a"),
    Change(7, "wrote", 4),
    Change(8, "wrote", 3),
    Change(9, "left", 3, b"b"),
    Change(10, "left", 4, b"c"),
]


def test_a_semaphore_s_good_history_passes() -> None:
    assert semaphore_violations(CROWD) == []
    assert crowds([Hold(1, 0, 1, 2), Hold(2, 0, 2, 1), Hold(3, 1, 2, 2)], 3) == []
    smaller = [*CROWD[:2], Change(3, "limit", 0, permits=1), *CROWD[4:6]]
    assert semaphore_violations(smaller) == []


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([*CROWD[:4], Change(5, "wrote", 3), *CROWD[5:]], "3 before its turn"),  # over the limit
        ([*CROWD[:4], Change(5, "wrote", 4), *CROWD[5:]], "4 before its turn"),  # fits, but is not next
        ([*CROWD[:2], Change(3, "limit", 0, permits=2), CROWD[3], Change(5, "wrote", 4)], "4 before its turn"),
        ([*CROWD, Change(11, "wrote", 4)], "4, which had gone"),
        (CROWD[:-1], "token 4 stayed behind"),
    ],
)
def test_a_semaphore_s_bad_history_is_rejected(history: list[Change], verdict: str) -> None:
    assert any(verdict in text for text in semaphore_violations(history))


def test_more_permits_than_the_limit_are_rejected() -> None:
    assert len(crowds([Hold(1, 0, 2, 2), Hold(2, 1, 3, 2)], 3)) == 1


TREE = [
    Change(1, "joined", 1, b"a", paths=("src/",)),
    Change(2, "joined", 2, b"b", paths=("docs/", "src.py")),
    Change(3, "joined", 3, b"c.r", paths=("src/a",), shared=True),
    Change(4, "joined", 4, b"d.r", paths=("src/a/b",), shared=True),
    Change(5, "wrote", 2),
    Change(6, "wrote", 1),
    Change(7, "left", 1, b"a"),
    Change(8, "wrote", 4),
    *(Change(9, "left", token, key) for token, key in ((2, b"b"), (3, b"c.r"), (4, b"d.r"))),
]


def test_a_tree_s_good_history_passes() -> None:
    assert path_violations(TREE) == []
    assert (
        overlapping_paths([Hold(1, 0, 2, paths=("a/",)), Hold(2, 1, 2, paths=("b",)), Hold(3, 2, 3, paths=("a",))])
        == []
    )


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        ([*TREE[:5], Change(6, "wrote", 3), *TREE[6:]], "3 wrote, but 1 is ahead"),
        ([*TREE, Change(10, "wrote", 4)], "4, which had gone"),
        ([*TREE[:1], Change(2, "joined", 2, b"b", paths=("",)), Change(3, "wrote", 2)], "2 wrote, but 1 is ahead"),
        (TREE[:-1], "token 4 stayed behind"),
    ],
)
def test_a_tree_s_bad_history_is_rejected(history: list[Change], verdict: str) -> None:
    assert any(verdict in text for text in path_violations(history))


def test_overlapping_beliefs_are_rejected() -> None:
    holds = [Hold(1, 0, 2, paths=("a/",)), Hold(2, 1, 3, paths=("a/b",)), Hold(3, 0, 9, paths=("c",), shared=True)]
    assert len(overlapping_paths(holds)) == 1


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=20), st.data())
def test_any_fair_history_passes_and_one_with_a_write_ahead_of_its_turn_does_not(
    requests: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Requests of some permits that stay for some steps, served first come, first served; then one pushes in."""
    history = [Change(1, "limit", 0, permits=3)]
    waiting, holding = [], []
    for number, (permits, stay) in enumerate(requests, 2):
        history.append(Change(number, "joined", number, b"%d" % number, permits))
        waiting.append((number, permits, stay))
    revision, early = 100, len(history)
    while waiting or holding:
        while waiting and sum(one[1] for one in holding) + waiting[0][1] <= 3:
            holding.append(waiting.pop(0))
            history.append(Change(revision, "wrote", holding[-1][0]))
        gone = min(holding, key=lambda one: one[2])
        holding.remove(gone)
        history.append(Change(revision := revision + 1, "left", gone[0], b"%d" % gone[0]))
    assert semaphore_violations(history) == []
    first = [change.token for change in history[early:] if change.kind == "wrote" and change.revision == 100]
    late = [number for number in range(2, len(requests) + 2) if number not in first]
    if late:
        history.insert(early, Change(99, "wrote", data.draw(st.sampled_from(late))))
        assert semaphore_violations(history)


# Dead letters

LETTERS = [
    Step(1, "record", "a", "waiting", 0),
    Step(2, "claimed", "a"),
    Step(2, "record", "a", "running", 1),
    Step(3, "unclaimed", "a"),
    Step(3, "record", "a", "waiting", 1),
    Step(4, "claimed", "a"),
    Step(4, "record", "a", "running", 2),
    Step(5, "unclaimed", "a"),  # its worker died
    Step(6, "record", "a", "waiting", 2, 1),
    Step(7, "claimed", "a"),
    Step(7, "record", "a", "running", 3, 1),
    Step(8, "unclaimed", "a"),
    Step(8, "record", "a", "resolved", 3, 1),
]


def _again(steps: list[Step], revision: int) -> list[Step]:
    return [step._replace(revision=revision + n // 2) for n, step in enumerate(steps)]


STARTED = [("a", 2), ("a", 4), ("a", 7)]


def test_a_good_history_of_dead_letters_passes() -> None:
    assert dead_letter_violations(LETTERS, ["a"], STARTED) == []


@pytest.mark.parametrize(
    ("history", "acknowledged", "started", "verdict"),
    [
        ([*LETTERS[:3], Step(3, "claimed", "a"), *LETTERS[3:]], ["a"], STARTED, "claimed while claimed at 2"),
        ([*LETTERS[:1], *LETTERS[2:]], ["a"], STARTED, "runs without a claim"),
        ([*LETTERS[:6], Step(4, "record", "a", "running", 1), *LETTERS[7:]], ["a"], STARTED, "attempt 1 after 1"),
        ([*LETTERS[:3], Step(3, "record", "a", "resolved", 1)], ["a"], STARTED[:1], "is resolved and claimed"),
        ([*LETTERS, Step(9, "record", "a", "waiting"), *_again(LETTERS[9:], 10)], ["a"], STARTED, "resolved 2 times"),
        (LETTERS, ["a", "b"], STARTED, "b: acknowledged and lost"),
        ([*LETTERS, Step(9, "deleted", "a")], ["a"], STARTED, "a: acknowledged and lost"),
        (LETTERS[:-4], ["a"], STARTED, "a: still waiting"),
        (LETTERS, ["a"], [*STARTED, ("a", 7)], "ran 2 times under the claim 7"),
        (LETTERS, ["a"], [*STARTED, ("a", 5)], "ran 1 times under the claim 5"),
        ([*LETTERS, Step(9, "claimed", "a")], ["a"], STARTED, "its claim stayed behind"),
    ],
)
def test_a_bad_history_of_dead_letters_is_rejected(
    history: list[Step], acknowledged: list[str], started: list[tuple[str, int]], verdict: str
) -> None:
    assert any(verdict in text for text in dead_letter_violations(history, acknowledged, started))
