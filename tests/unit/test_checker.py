"""The judge of the chaos runs must reject every history that is known to be bad."""

from __future__ import annotations

import pytest

from tests.chaos.checker import Change, Hold, overlaps, violations

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
